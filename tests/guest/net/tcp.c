#include "tcp.h"

enum { FIN = 1, SYN = 2, RST = 4, PSH = 8, ACK = 16 };
enum { TCP_SIZE = 20, MSS_OPTION = 4 };
/* Our window, and the longest segment that we want: what fits every MTU (RFC 9293, 3.7.1). Linux sends half a window at a
 * time where that is more than this, and joins both halves to one segment for the device to cut, which ours does not. */
#define WINDOW 536u
#define TRIES 6u
#define FIRST_PAUSE (TICKS_PER_SECOND / 2)
/* A peer that says nothing for so long is gone. */
#define SILENCE (10 * TICKS_PER_SECOND)

struct tcp passive, active;

struct segment {
	const struct datagram *in;
	uint32_t port, peer_port, seq, ack, flags;
	const uint8_t *data;
	uint32_t length;
};

/* What stands in *link_buffer() behind the headers goes along. */
static void emit(const uint8_t *mac, uint32_t peer, uint32_t port, uint32_t peer_port, uint32_t seq, uint32_t ack, uint32_t flags,
		 uint32_t length)
{
	uint8_t *at = link_buffer() + TRANSPORT;
	uint32_t header = flags & SYN ? TCP_SIZE + MSS_OPTION : TCP_SIZE;
	uint16_t sum;
	put16(at, port);
	put16(at + 2, peer_port);
	put32(at + 4, seq);
	put32(at + 8, ack);
	put16(at + 12, header / 4 << 12 | flags);
	put16(at + 14, WINDOW);
	put32(at + 16, 0);
	if (flags & SYN)
		put32(at + TCP_SIZE, 2u << 24 | 4u << 16 | WINDOW);
	sum = checksum(add_up(at, header + length, pseudo_header(me.address, peer, PROTOCOL_TCP, header + length)));
	memcpy(at + 16, &sum, sizeof sum);
	ip_send(mac, PROTOCOL_TCP, peer, header + length);
}

/* Sends what is not acknowledged yet, or an acknowledgement alone. */
static void output(struct tcp *c)
{
	if (c->state == TCP_SYN_SENT || c->state == TCP_SYN_RECEIVED) {
		emit(c->mac, c->peer, c->port, c->peer_port, c->base - 1, c->next, c->state == TCP_SYN_SENT ? SYN : SYN | ACK, 0);
		return;
	}
	uint32_t length = c->acked < c->out_length ? c->out_length - c->acked : 0;
	uint32_t fin = c->closing && c->acked <= c->out_length ? FIN : 0;
	if (length)
		memcpy(link_buffer() + TRANSPORT + TCP_SIZE, c->out + c->acked, length);
	emit(c->mac, c->peer, c->port, c->peer_port, c->base + c->acked, c->next, ACK | fin | (length ? PSH : 0), length);
	c->said = 1;
}

static uint32_t to_say(const struct tcp *c)
{
	return c->out_length + (c->closing ? 1 : 0);
}

static void wait_anew(struct tcp *c)
{
	c->pause = FIRST_PAUSE;
	c->tries = 0;
	c->deadline = ticks + (c->state == TCP_OPEN && c->acked == to_say(c) ? SILENCE : FIRST_PAUSE);
}

static void end(struct tcp *c, const char *why)
{
	c->state = TCP_CLOSED;
	c->closed(c, why);
}

static void begin(struct tcp *c, int state, const uint8_t *mac, uint32_t peer, uint32_t peer_port)
{
	memcpy(c->mac, mac, 6);
	c->peer = peer;
	c->peer_port = peer_port;
	c->state = state;
	c->closing = c->peer_closed = c->said = 0;
	c->base = chance();
	c->acked = 0;
	wait_anew(c);
}

void tcp_connect(const uint8_t *mac, uint32_t peer, uint32_t peer_port, const char *out, uint32_t length)
{
	active.out = out;
	active.out_length = length;
	/* The dynamic ports (RFC 6335). */
	active.port = 49152 + chance() % 16384;
	active.next = 0;
	begin(&active, TCP_SYN_SENT, mac, peer, peer_port);
	output(&active);
}

static void refuse(const struct segment *s)
{
	uint32_t length = s->length + !!(s->flags & SYN) + !!(s->flags & FIN);
	if (s->flags & RST)
		return;
	if (s->flags & ACK)
		emit(s->in->from_mac, s->in->from, s->port, s->peer_port, s->ack, 0, RST, 0);
	else
		emit(s->in->from_mac, s->in->from, s->port, s->peer_port, 0, s->seq + length, RST | ACK, 0);
}

/* What came in order. Returns whether it wants an acknowledgement. */
static int take(struct tcp *c, const struct segment *s)
{
	uint32_t known = c->next - s->seq, fin = s->flags & FIN ? 1 : 0;
	/* Known already, or (then the difference is huge) ahead of what is missing: says what is expected. */
	if (known > s->length)
		return 1;
	if (c->peer_closed)
		return s->length + fin > 0;
	if (s->length > known) {
		c->next += s->length - known;
		c->receive(c, s->data + known, s->length - known);
	}
	if (fin) {
		c->next++;
		c->peer_closed = 1;
		if (!c->closing)
			c->closing = 1, c->said = 0;
	}
	return s->length + fin > 0;
}

static void input(struct tcp *c, const struct segment *s)
{
	uint32_t done, answer, progress;
	if (s->flags & RST) {
		if (c->state == TCP_SYN_SENT ? s->flags & ACK && s->ack == c->base : s->seq == c->next)
			end(c, c->state == TCP_SYN_SENT ? "connection refused" : "connection reset");
		return;
	}
	if (c->state == TCP_SYN_SENT) {
		if ((s->flags & (SYN | ACK)) == (SYN | ACK) && s->ack == c->base) {
			c->next = s->seq + 1;
			c->state = TCP_OPEN;
			wait_anew(c);
			output(c);
		}
		return;
	}
	if (s->flags & SYN || !(s->flags & ACK)) {
		if (s->flags & SYN)
			output(c);
		return;
	}
	if (c->state == TCP_SYN_RECEIVED) {
		if (s->ack != c->base)
			return;
		c->state = TCP_OPEN;
	}
	done = s->ack - (c->base + c->acked);
	progress = done && done <= to_say(c) - c->acked;
	if (progress)
		c->acked += done;
	answer = (uint32_t)take(c, s);
	if (progress || answer)
		wait_anew(c);
	if (answer || (!c->said && c->acked < to_say(c)))
		output(c);
	if (c->peer_closed && c->closing && c->acked == to_say(c))
		end(c, NULL);
}

void tcp_input(const struct datagram *in, int checked)
{
	struct segment s = { .in = in };
	uint32_t header;
	if (in->length < TCP_SIZE)
		return;
	header = (in->data[12] >> 4) * 4u;
	if (header < TCP_SIZE || header > in->length ||
	    (!checked && checksum(add_up(in->data, in->length, pseudo_header(in->from, in->to, PROTOCOL_TCP, in->length)))))
		return;
	s.peer_port = get16(in->data);
	s.port = get16(in->data + 2);
	s.seq = get32(in->data + 4);
	s.ack = get32(in->data + 8);
	s.flags = in->data[13];
	s.data = in->data + header;
	s.length = in->length - header;
	for (int i = 0; i < 2; i++) {
		struct tcp *c = i ? &active : &passive;
		if (c->state && c->port == s.port && c->peer == in->from && c->peer_port == s.peer_port) {
			input(c, &s);
			return;
		}
	}
	if (!passive.port || s.port != passive.port || (s.flags & (SYN | ACK | RST)) != SYN) {
		refuse(&s);
	} else if (!passive.state) {
		/* Who comes while another is served comes again. */
		passive.out_length = 0;
		passive.next = s.seq + 1;
		begin(&passive, TCP_SYN_RECEIVED, in->from_mac, in->from, s.peer_port);
		output(&passive);
	}
}

static void due(struct tcp *c)
{
	if (!c->state || (int32_t)(ticks - c->deadline) < 0)
		return;
	if (c->state == TCP_OPEN && c->acked == to_say(c)) {
		emit(c->mac, c->peer, c->port, c->peer_port, c->base + c->acked, c->next, RST | ACK, 0);
		end(c, "the peer fell silent");
	} else if (++c->tries >= TRIES) {
		end(c, "no answer");
	} else {
		c->pause *= 2;
		c->deadline = ticks + c->pause;
		output(c);
	}
}

void tcp_tick(void)
{
	due(&passive);
	due(&active);
}

int tcp_busy(void)
{
	return passive.state || active.state;
}
