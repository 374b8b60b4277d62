/* A DHCP client (RFC 2131): discover, request, and the address is there. The lease is the VM's for as long as it runs, so
 * nothing is renewed. */
#include "ip.h"

#define SERVER 67u
#define CLIENT 68u
#define COOKIE 0x63825363u
enum { DISCOVER = 1, OFFER = 2, REQUEST = 3, ACK = 5, NAK = 6 };
enum { PAD = 0, MASK = 1, ROUTER = 3, MTU = 26, WANTED = 50, KIND = 53, SERVER_ID = 54, PARAMETERS = 55, END = 255 };
/* Where things are in a message. */
enum { XID = 4, YIADDR = 16, CHADDR = 28, MAGIC_COOKIE = 236, OPTIONS = 240, MESSAGE_MIN = 300 };
#define AGAIN (2 * TICKS_PER_SECOND)
#define EVERYWHERE 0xffffffffu

static struct {
	uint32_t xid, offered, server, sent;
	int state; /* what was asked last; 0 before */
} client;

static void ask(int kind)
{
	uint8_t *frame = link_buffer(), *message = frame + TRANSPORT + UDP_SIZE, *at = message + OPTIONS;
	memset(message, 0, MESSAGE_MIN);
	message[0] = message[1] = 1;
	message[2] = 6;
	put32(message + XID, client.xid);
	memcpy(message + CHADDR, link_mac, 6);
	put32(message + MAGIC_COOKIE, COOKIE);
	*at++ = KIND, *at++ = 1, *at++ = (uint8_t)kind;
	if (kind == REQUEST) {
		*at++ = WANTED, *at++ = 4, put32(at, client.offered), at += 4;
		*at++ = SERVER_ID, *at++ = 4, put32(at, client.server), at += 4;
	}
	*at++ = PARAMETERS, *at++ = 3, *at++ = MASK, *at++ = ROUTER, *at++ = MTU;
	*at = END;
	put_udp(frame + TRANSPORT, 0, CLIENT, EVERYWHERE, SERVER, MESSAGE_MIN);
	ip_send(everybody, PROTOCOL_UDP, EVERYWHERE, UDP_SIZE + MESSAGE_MIN);
	client.state = kind;
	client.sent = ticks;
}

/* The value of an option of this length, 0 where it is not there or of another one. */
static uint32_t value(const uint8_t *options, uint32_t length, uint8_t code, uint32_t bytes)
{
	for (uint32_t at = 0; at + 1 < length && options[at] != END;) {
		if (options[at] == PAD) {
			at++;
			continue;
		}
		uint32_t size = options[at + 1];
		if (at + 2 + size > length)
			return 0;
		/* The first of several routers will do. */
		if (options[at] == code && size >= bytes)
			return bytes == 1 ? options[at + 2] : bytes == 2 ? get16(options + at + 2) : get32(options + at + 2);
		at += 2 + size;
	}
	return 0;
}

static void take(uint32_t address, const uint8_t *options, uint32_t length)
{
	uint32_t mtu = value(options, length, MTU, 2);
	me.mask = value(options, length, MASK, 4);
	me.gateway = value(options, length, ROUTER, 4);
	/* A larger frame than the usual one does not fit our buffers. */
	me.mtu = mtu >= 576 && mtu < 1500 ? mtu : 1500;
	me.address = address;
}

int dhcp_input(const struct datagram *in, int checked)
{
	const uint8_t *message = in->data + UDP_SIZE;
	if (in->length < UDP_SIZE + OPTIONS || get16(in->data) != SERVER || get16(in->data + 2) != CLIENT)
		return 0;
	uint32_t length = get16(in->data + 4);
	if (length > in->length || length < UDP_SIZE + OPTIONS || me.address || message[0] != 2 ||
	    get32(message + XID) != client.xid || memcmp(message + CHADDR, link_mac, 6) || get32(message + MAGIC_COOKIE) != COOKIE)
		return 1;
	if (!checked && get16(in->data + 6) &&
	    checksum(add_up(in->data, length, pseudo_header(in->from, in->to, PROTOCOL_UDP, length))))
		return 1;
	const uint8_t *options = message + OPTIONS;
	length -= UDP_SIZE + OPTIONS;
	uint32_t kind = value(options, length, KIND, 1);
	if (client.state == DISCOVER && kind == OFFER) {
		client.offered = get32(message + YIADDR);
		client.server = value(options, length, SERVER_ID, 4);
		ask(REQUEST);
	} else if (client.state == REQUEST && kind == ACK && get32(message + YIADDR) == client.offered) {
		take(client.offered, options, length);
	} else if (client.state == REQUEST && kind == NAK) {
		client.state = 0;
	}
	return 1;
}

void dhcp_tick(void)
{
	if (me.address || (client.state && ticks - client.sent < AGAIN))
		return;
	client.xid = chance();
	ask(DISCOVER);
}
