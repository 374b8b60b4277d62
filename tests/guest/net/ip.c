#include "ip.h"
#include "tcp.h"

#define HARDWARE_ETHERNET 1
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define FRAGMENTED 0x3fffu /* more fragments, or an offset */

struct host me = { .mtu = 1500 };
const uint8_t everybody[6] = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff };
uint32_t arp_answers;

static struct {
	uint32_t address;
	int known;
	uint8_t mac[6];
} neighbour;

uint32_t add_up(const void *data, uint32_t length, uint32_t sum)
{
	const uint32_t *words = data;
	uint64_t all = sum;
	for (; length >= 32; length -= 32, words += 8) {
		all += words[0];
		all += words[1];
		all += words[2];
		all += words[3];
		all += words[4];
		all += words[5];
		all += words[6];
		all += words[7];
	}
	for (; length >= 4; length -= 4)
		all += *words++;
	const uint8_t *rest = (const uint8_t *)words;
	if (length >= 2)
		all += rest[0] | (uint32_t)rest[1] << 8;
	if (length & 1)
		all += rest[length - 1];
	all = (all & 0xffffffffu) + (all >> 32);
	all = (all & 0xffffu) + (all >> 16);
	return (uint32_t)((all & 0xffffu) + (all >> 16));
}

uint16_t checksum(uint32_t sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

uint32_t pseudo_header(uint32_t from, uint32_t to, uint32_t protocol, uint32_t length)
{
	uint8_t header[12];
	put32(header, from);
	put32(header + 4, to);
	put16(header + 8, protocol);
	put16(header + 10, length);
	return add_up(header, sizeof header, 0);
}

uint8_t *put_ethernet(uint8_t *frame, const uint8_t *to, const uint8_t *from, uint32_t type)
{
	memcpy(frame, to, 6);
	memcpy(frame + 6, from, 6);
	put16(frame + 12, type);
	return frame + ETHERNET_SIZE;
}

uint8_t *put_arp(uint8_t *frame, const uint8_t *to, uint32_t what, const uint8_t *sender_mac, uint32_t sender,
		 const uint8_t *target_mac, uint32_t target)
{
	uint8_t *at = put_ethernet(frame, to, link_mac, TYPE_ARP);
	put16(at, HARDWARE_ETHERNET);
	put16(at + 2, TYPE_IPV4);
	put16(at + 4, 6 << 8 | 4);
	put16(at + 6, what);
	memcpy(at + 8, sender_mac, 6);
	put32(at + 14, sender);
	memcpy(at + 18, target_mac, 6);
	put32(at + 24, target);
	return at + ARP_SIZE;
}

void put_ip(uint8_t *at, uint32_t protocol, uint32_t from, uint32_t to, uint32_t length)
{
	uint16_t sum;
	put16(at, 0x4500);
	put16(at + 2, IP_SIZE + length);
	put16(at + 4, 0);
	put16(at + 6, 0x4000); /* don't fragment */
	put16(at + 8, 64 << 8 | protocol);
	put16(at + 10, 0);
	put32(at + 12, from);
	put32(at + 16, to);
	sum = checksum(add_up(at, IP_SIZE, 0));
	memcpy(at + 10, &sum, sizeof sum);
}

void put_udp(uint8_t *at, uint32_t from, uint32_t from_port, uint32_t to, uint32_t to_port, uint32_t length)
{
	uint16_t sum;
	put16(at, from_port);
	put16(at + 2, to_port);
	put16(at + 4, UDP_SIZE + length);
	put16(at + 6, 0);
	sum = checksum(add_up(at, UDP_SIZE + length, pseudo_header(from, to, PROTOCOL_UDP, UDP_SIZE + length)));
	sum = sum ? sum : 0xffff;
	memcpy(at + 6, &sum, sizeof sum);
}

void ip_send(const uint8_t *to_mac, uint32_t protocol, uint32_t to, uint32_t length)
{
	uint8_t *frame = link_buffer();
	put_ip(put_ethernet(frame, to_mac, link_mac, TYPE_IPV4), protocol, me.address, to, length);
	link_send(TRANSPORT + length);
}

void arp_ask(uint32_t address)
{
	static const uint8_t nobody[6];
	put_arp(link_buffer(), everybody, ARP_REQUEST, link_mac, me.address, nobody, address);
	link_send(ETHERNET_SIZE + ARP_SIZE);
}

uint32_t next_hop(uint32_t to)
{
	return (to ^ me.address) & me.mask ? me.gateway : to;
}

const uint8_t *route(uint32_t to)
{
	if (neighbour.address != next_hop(to)) {
		neighbour.address = next_hop(to);
		neighbour.known = 0;
	}
	return neighbour.known ? neighbour.mac : NULL;
}

static void arp_input(const uint8_t *arp, uint32_t length)
{
	if (length < ARP_SIZE || get16(arp) != HARDWARE_ETHERNET || get16(arp + 2) != TYPE_IPV4 || !me.address ||
	    get32(arp + 24) != me.address)
		return;
	uint32_t sender = get32(arp + 14);
	if (get16(arp + 6) == ARP_REQUEST) {
		put_arp(link_buffer(), arp + 8, ARP_REPLY, link_mac, me.address, arp + 8, sender);
		link_send(ETHERNET_SIZE + ARP_SIZE);
	} else if (get16(arp + 6) == ARP_REPLY) {
		arp_answers++;
		if (sender == neighbour.address) {
			memcpy(neighbour.mac, arp + 8, 6);
			neighbour.known = 1;
		}
	}
}

static void icmp_input(const struct datagram *in)
{
	if (in->length < 8 || in->data[0] != ICMP_ECHO || in->to != me.address)
		return;
	uint8_t *reply = link_buffer() + TRANSPORT;
	memcpy(reply, in->data, in->length);
	reply[0] = ICMP_ECHO_REPLY;
	/* The type is all that changes (RFC 1624), so that nothing is added up that only goes back: a wrong sum stays one. */
	uint32_t sum = get16(reply + 2) + (ICMP_ECHO << 8);
	put16(reply + 2, (sum & 0xffff) + (sum >> 16));
	ip_send(in->from_mac, PROTOCOL_ICMP, in->from, in->length);
}

static void ip_input(const uint8_t *frame, uint32_t length, int checked)
{
	const uint8_t *ip = frame + ETHERNET_SIZE;
	if (length < TRANSPORT || ip[0] >> 4 != 4)
		return;
	uint32_t header = (ip[0] & 15u) * 4, total = get16(ip + 2);
	if (header < IP_SIZE || total < header || total > length - ETHERNET_SIZE || get16(ip + 6) & FRAGMENTED ||
	    checksum(add_up(ip, header, 0)))
		return;
	struct datagram in = { frame + 6, get32(ip + 12), get32(ip + 16), ip + header, total - header };
	if (ip[9] == PROTOCOL_UDP)
		dhcp_input(&in, checked);
	else if (!me.address)
		return;
	else if (ip[9] == PROTOCOL_ICMP)
		icmp_input(&in);
	else if (ip[9] == PROTOCOL_TCP && in.to == me.address)
		tcp_input(&in, checked);
}

void network_step(int timed)
{
	static uint32_t last;
	const uint8_t *frame;
	uint32_t length;
	int checked;
	while ((frame = link_receive(&length, &checked))) {
		if (length > ETHERNET_SIZE && get16(frame + 12) == TYPE_ARP)
			arp_input(frame + ETHERNET_SIZE, length - ETHERNET_SIZE);
		else if (length > ETHERNET_SIZE && get16(frame + 12) == TYPE_IPV4)
			ip_input(frame, length, checked);
		link_release();
	}
	if (last != ticks) {
		last = ticks;
		dhcp_tick();
		tcp_tick();
	}
	wait_for_event(timed);
}

void network_up(uint32_t extra)
{
	link_up(option("nic", 0), extra);
	dhcp_tick();
	while (!me.address)
		network_step(1);
	print("NET mac=");
	print_mac(link_mac);
	print(" ip=");
	print_address(me.address);
	print(" gw=");
	print_address(me.gateway);
	print(" mtu=%u\n", me.mtu);
}

void print_mac(const uint8_t *mac)
{
	for (int i = 0; i < 6; i++)
		print("%s%x%x", i ? ":" : "", mac[i] >> 4, mac[i] & 15);
}

void print_address(uint32_t address)
{
	print("%u.%u.%u.%u", address >> 24, address >> 16 & 255, address >> 8 & 255, address & 255);
}

uint32_t parse_address(const char **text)
{
	uint32_t address = 0;
	for (int part = 0; part < 4; part++) {
		uint32_t byte = 0, digits = 0;
		if (part && *(*text)++ != '.')
			return 0;
		for (; **text >= '0' && **text <= '9' && digits < 3; (*text)++, digits++)
			byte = byte * 10 + (uint32_t)(**text - '0');
		if (!digits || byte > 255)
			return 0;
		address = address << 8 | byte;
	}
	return address;
}
