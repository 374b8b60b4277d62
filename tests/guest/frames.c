/* A hostile guest that sends raw frames, for the host to count what arrives. It learns its MAC and address by DHCP first (and
 * prints the line `NET ...` as net.c does). Command line:
 *
 *	frames=KIND,KIND,...	what to send, in this order; `all` is everything in the order below
 *	ip=A.B.C.D		the foreign address that it claims (default: its own with the third bit flipped, the fourth where
 *				that is the gateway's)
 *	peer=A.B.C.D		another guest (default: the foreign address)
 *	to=A.B.C.D		where honest UDP goes (default: the gateway)
 *	count=N			ARP packets of the flood (300)
 *	nic=N			another interface than the first one
 *
 * Everything that is IP carries UDP from port 4000 to port 9 with the text `frames:KIND`, unless it says otherwise.
 *
 *	good		all as the lease says; must arrive
 *	mac		Ethernet source 02:76:6d:ff:ff:fe
 *	ip		IP source of `ip=`
 *	arp		ARP reply to all: the gateway is at this MAC
 *	arpip		ARP request whose sender is `ip=`
 *	arpmac		ARP request whose sender has MAC 02:76:6d:ff:ff:fe, from the right Ethernet source
 *	arpflood	`count=` ARP requests, senders' addresses counting up from `ip=`, its own left out
 *	vlan		802.1Q tag (VLAN 5) around what is good otherwise
 *	qinq		802.1ad tag around the same
 *	ipv6		router advertisement to ff02::1, from fe80::1
 *	ethertype	ethertype 0x88cc (LLDP) to 01:80:c2:00:00:0e
 *	dhcpserver	a DHCP offer to all: UDP from port 67 to 68
 *	dhcpother	a DHCP discover whose chaddr is 02:76:6d:ff:ff:fe; ends in the worker
 *	dhcpgarbage	300 random bytes to UDP port 67; ends in the worker
 *	multicast	to 224.0.0.251, MAC 01:00:5e:00:00:fb; all else good
 *	metadata	to 169.254.169.254 through the gateway
 *	peer		ARP request for `peer=` with the right sender, then UDP to it at the MAC that its address has by default
 *	source0		IP source 0.0.0.0
 *	fragments	IP source of `ip=`, a first and a second fragment
 *	tiny		an Ethernet header and 3 bytes, ethertype IPv4
 *	header		an Ethernet header alone
 *	short		13 bytes: less than an Ethernet header
 *	zero		virtio's header alone: a frame of 0 bytes
 *	noheader	5 bytes: less than virtio's header
 *	long		9,014 bytes, all as the lease says: more than the MTU, where that is 1,500
 *	oversize	70,000 bytes: more than any packet
 *	badgso		virtio's header with a gso_type that there is not
 *	badcsum		virtio's header with a checksum to complete outside of the frame
 *	badsegment	virtio's header with TCP segments of 0 bytes
 *	badlength	virtio's header with a hdr_len of 0xffff
 *
 * After each kind it sends a good frame, an ARP request for the gateway, and prints `SENT kind`, then `ANSWERED kind` where an
 * ARP reply came within a second. (`RESET kind` says that the device wanted a reset and got it.) After the last one it prints
 * `FRAMES DONE`, and sleeps until its power button.
 */
#include "net/ip.h"

static const uint8_t foreign_mac[6] = { 0x02, 0x76, 0x6d, 0xff, 0xff, 0xfe };
static const uint8_t nobody[6];
/* Agreed on, so that the worker hands such headers to the kernel. */
enum { OFFLOADS = NET_F_CSUM | NET_F_HOST_TSO4 };
static const struct net_header plain;
static uint8_t frame[70000] __attribute__((aligned(16)));
static uint32_t foreign, peer, target, count;
static uint8_t way[6]; /* MAC of the gateway */
static uint32_t stopped;

static void send_with(const struct net_header *header, uint32_t length)
{
	stopped |= !link_send_raw(header, sizeof *header, frame, length);
}

static void send(uint32_t length)
{
	send_with(&plain, length);
}

/* UDP in `frame` with this text in front and as many zeros behind as `payload` says. Returns the frame's length. */
static uint32_t udp(const uint8_t *to_mac, const uint8_t *from_mac, uint32_t from, uint32_t to, const char *kind, uint32_t payload)
{
	uint8_t *at = frame + TRANSPORT + UDP_SIZE;
	memset(frame, 0, TRANSPORT + UDP_SIZE + payload);
	for (const char *text = "frames:"; *text; text++)
		*at++ = (uint8_t)*text;
	for (; *kind && *kind != ','; kind++)
		*at++ = (uint8_t)*kind;
	put_udp(frame + TRANSPORT, from, 4000, to, 9, payload);
	put_ip(put_ethernet(frame, to_mac, from_mac, TYPE_IPV4), PROTOCOL_UDP, from, to, UDP_SIZE + payload);
	return TRANSPORT + UDP_SIZE + payload;
}

static uint32_t honest(const char *kind, uint32_t payload)
{
	return udp(way, link_mac, me.address, target, kind, payload);
}

static uint32_t arp(uint32_t what, const uint8_t *sender_mac, uint32_t sender, uint32_t wanted)
{
	return (uint32_t)(put_arp(frame, everybody, what, sender_mac, sender, nobody, wanted) - frame);
}

static void good(const char *kind) { send(honest(kind, 64)); }
static void mac(const char *kind) { send(udp(way, foreign_mac, me.address, target, kind, 64)); }
static void ip(const char *kind) { send(udp(way, link_mac, foreign, target, kind, 64)); }
static void source0(const char *kind) { send(udp(way, link_mac, 0, target, kind, 64)); }
static void metadata(const char *kind) { send(udp(way, link_mac, me.address, 0xa9fea9fe, kind, 64)); }

static void multicast(const char *kind)
{
	static const uint8_t group[6] = { 0x01, 0x00, 0x5e, 0x00, 0x00, 0xfb };
	send(udp(group, link_mac, me.address, 0xe00000fb, kind, 64));
}

static void arp_gateway(const char *kind)
{
	(void)kind;
	send(arp(ARP_REPLY, link_mac, me.gateway, me.gateway));
}

static void arp_foreign_ip(const char *kind)
{
	(void)kind;
	send(arp(ARP_REQUEST, link_mac, foreign, me.gateway));
}

static void arp_foreign_mac(const char *kind)
{
	(void)kind;
	send(arp(ARP_REQUEST, foreign_mac, me.address, me.gateway));
}

static void arp_flood(const char *kind)
{
	(void)kind;
	for (uint32_t n = 0, sender = foreign; n < count; n++, sender++) {
		if (sender == me.address)
			sender++;
		send(arp(ARP_REQUEST, link_mac, sender, me.gateway));
	}
}

static void tagged(const char *kind, uint32_t type)
{
	uint32_t length = honest(kind, 64);
	for (uint32_t at = length; at-- > 12;)
		frame[at + 4] = frame[at];
	put16(frame + 12, type);
	put16(frame + 14, 5);
	send(length + 4);
}

static void vlan(const char *kind) { tagged(kind, TYPE_VLAN); }
static void qinq(const char *kind) { tagged(kind, 0x88a8); }

static void ipv6(const char *kind)
{
	static const uint8_t all_nodes[6] = { 0x33, 0x33, 0, 0, 0, 1 };
	uint8_t *at = put_ethernet(frame, all_nodes, link_mac, TYPE_IPV6);
	uint32_t sum;
	uint16_t whole;
	(void)kind;
	memset(at, 0, 56);
	at[0] = 0x60;
	put16(at + 4, 16);
	put16(at + 6, 58 << 8 | 255); /* ICMPv6, hop limit */
	put16(at + 8, 0xfe80);
	at[23] = 1;
	put16(at + 24, 0xff02);
	at[39] = 1;
	at[40] = 134; /* router advertisement, for half an hour */
	at[44] = 64;
	put16(at + 46, 1800);
	sum = add_up(at + 8, 32, pseudo_header(0, 0, 58, 16));
	whole = checksum(add_up(at + 40, 16, sum));
	memcpy(at + 42, &whole, sizeof whole);
	send(ETHERNET_SIZE + 56);
}

static void ethertype(const char *kind)
{
	static const uint8_t bridges[6] = { 0x01, 0x80, 0xc2, 0, 0, 0x0e };
	(void)kind;
	memset(frame, 0, 60);
	put_ethernet(frame, bridges, link_mac, 0x88cc);
	send(60);
}

/* A DHCP message of this op and type about this MAC, from a port to the other one. */
static void dhcp(uint32_t op, uint32_t type, const uint8_t *about, uint32_t from_port, uint32_t to_port)
{
	uint8_t *message = frame + TRANSPORT + UDP_SIZE;
	memset(message, 0, 300);
	put16(message, op << 8 | 1);
	message[2] = 6;
	put32(message + 4, 0x12345678);
	put32(message + 16, op == 2 ? foreign : 0);
	memcpy(message + 28, about, 6);
	put32(message + 236, 0x63825363);
	put32(message + 240, 53u << 24 | 1u << 16 | type << 8 | 255);
	put_udp(frame + TRANSPORT, me.address, from_port, 0xffffffff, to_port, 300);
	put_ip(put_ethernet(frame, everybody, link_mac, TYPE_IPV4), PROTOCOL_UDP, me.address, 0xffffffff, UDP_SIZE + 300);
	send(TRANSPORT + UDP_SIZE + 300);
}

static void dhcp_server(const char *kind)
{
	(void)kind;
	dhcp(2, 2, foreign_mac, 67, 68);
}

static void dhcp_other(const char *kind)
{
	(void)kind;
	dhcp(1, 1, foreign_mac, 68, 67);
}

static void dhcp_garbage(const char *kind)
{
	uint32_t seed = 1, length = honest(kind, 300);
	for (uint32_t at = TRANSPORT + UDP_SIZE; at < length; at++)
		frame[at] = (uint8_t)random32(&seed);
	put16(frame + TRANSPORT + 2, 67);
	send(length);
}

static void to_peer(const char *kind)
{
	uint8_t guess[6] = { 0x02, 0x76, 0x6d, (uint8_t)(peer >> 16), (uint8_t)(peer >> 8), (uint8_t)peer };
	send(arp(ARP_REQUEST, link_mac, me.address, peer));
	send(udp(guess, link_mac, me.address, peer, kind, 64));
}

/* IP's header with other fragment bits, its checksum right again. */
static void refragment(uint32_t bits)
{
	uint8_t *at = frame + ETHERNET_SIZE;
	uint16_t sum;
	put16(at + 6, bits);
	put16(at + 10, 0);
	sum = checksum(add_up(at, IP_SIZE, 0));
	memcpy(at + 10, &sum, sizeof sum);
}

static void fragments(const char *kind)
{
	uint32_t length = udp(way, link_mac, foreign, target, kind, 64);
	refragment(0x2000);
	send(length);
	refragment(9);
	send(length);
}

static void tiny(const char *kind) { honest(kind, 64), send(17); }
static void header_alone(const char *kind) { honest(kind, 64), send(ETHERNET_SIZE); }
static void too_short(const char *kind) { honest(kind, 64), send(13); }
static void zero(const char *kind) { (void)kind, send(0); }
static void too_long(const char *kind) { send(honest(kind, 9014 - TRANSPORT - UDP_SIZE)); }
static void oversize(const char *kind) { honest(kind, 60000), send(sizeof frame); }

static void no_header(const char *kind)
{
	(void)kind;
	stopped |= !link_send_raw(&plain, 5, NULL, 0);
}

static void spoilt_header(const char *kind, struct net_header header)
{
	send_with(&header, honest(kind, 64));
}

static void bad_gso(const char *kind)
{
	spoilt_header(kind, (struct net_header){ .gso_type = 0x7f, .gso_size = 100, .hdr_len = 54 });
}

static void bad_csum(const char *kind)
{
	spoilt_header(kind, (struct net_header){ .flags = NET_NEEDS_CSUM, .csum_start = 60000, .csum_offset = 60000 });
}

static void bad_segment(const char *kind)
{
	spoilt_header(kind, (struct net_header){ .flags = NET_NEEDS_CSUM, .gso_type = 1, .csum_start = 34, .csum_offset = 16 });
}

static void bad_length(const char *kind)
{
	spoilt_header(kind, (struct net_header){ .flags = NET_NEEDS_CSUM, .hdr_len = 0xffff, .csum_start = 34, .csum_offset = 6 });
}

static const struct {
	const char *name;
	void (*send)(const char *kind);
} kinds[] = {
	{ "good", good },
	{ "mac", mac },
	{ "ip", ip },
	{ "arp", arp_gateway },
	{ "arpip", arp_foreign_ip },
	{ "arpmac", arp_foreign_mac },
	{ "arpflood", arp_flood },
	{ "vlan", vlan },
	{ "qinq", qinq },
	{ "ipv6", ipv6 },
	{ "ethertype", ethertype },
	{ "dhcpserver", dhcp_server },
	{ "dhcpother", dhcp_other },
	{ "dhcpgarbage", dhcp_garbage },
	{ "multicast", multicast },
	{ "metadata", metadata },
	{ "peer", to_peer },
	{ "source0", source0 },
	{ "fragments", fragments },
	{ "tiny", tiny },
	{ "header", header_alone },
	{ "short", too_short },
	{ "zero", zero },
	{ "noheader", no_header },
	{ "long", too_long },
	{ "oversize", oversize },
	{ "badgso", bad_gso },
	{ "badcsum", bad_csum },
	{ "badsegment", bad_segment },
	{ "badlength", bad_length },
};
#define KINDS (sizeof kinds / sizeof kinds[0])

/* Asks the gateway who it is, and waits up to a second for its word. */
static int answered(void)
{
	uint32_t before = arp_answers, begin;
	arp_ask(me.gateway);
	for (begin = ticks; arp_answers == before && ticks - begin <= TICKS_PER_SECOND;)
		network_step(1);
	return arp_answers != before;
}

static void run(uint32_t n)
{
	const char *name = kinds[n].name;
	stopped = 0;
	kinds[n].send(name);
	if (stopped) {
		link_up(option("nic", 0), OFFLOADS);
		print("RESET %s\n", name);
	}
	int answer = answered();
	print("SENT %s\n", name);
	if (answer)
		print("ANSWERED %s\n", name);
}

/* Is this word, up to a comma, a space or the end, that name? */
static int is(const char *word, const char *name)
{
	while (*name && *word == *name)
		word++, name++;
	return !*name && (!*word || *word == ',' || *word == ' ');
}

static uint32_t address_option(const char *name, uint32_t otherwise)
{
	const char *text = option_text(name);
	uint32_t address = text ? parse_address(&text) : otherwise;
	if (!address)
		fail("an option is no address", 0);
	return address;
}

static void run_all(void)
{
	for (uint32_t n = 0; n < KINDS; n++)
		run(n);
}

void guest_main(void)
{
	const char *list = option_text("frames");
	network_up(OFFLOADS);
	foreign = address_option("ip", me.address ^ ((me.address ^ 4) == me.gateway ? 8 : 4));
	peer = address_option("peer", foreign);
	target = address_option("to", me.gateway);
	count = option("count", 300);
	/* From now on it is the gateway's MAC that is remembered. */
	route(me.gateway);
	int known = answered();
	memcpy(way, known ? route(me.gateway) : everybody, sizeof way);
	if (!known)
		print("the gateway does not answer ARP\n");
	while (list && *list && *list != ' ') {
		uint32_t n = 0;
		while (n < KINDS && !is(list, kinds[n].name))
			n++;
		if (is(list, "all"))
			run_all();
		else if (n < KINDS)
			run(n);
		else
			fail("frames= names no kind, number", n);
		while (*list && *list != ' ' && *list++ != ',')
			;
	}
	print("FRAMES DONE\n");
	for (;;)
		network_step(0);
}
