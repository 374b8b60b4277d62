/* TCP, as little as a page needs (RFC 9293): what we say fits one segment, what we hear comes in order or again, and the
 * window is one segment, so that nobody joins several. Two connections: one that we made, one that was made to us. */
#ifndef TCP_H
#define TCP_H

#include "ip.h"

enum { TCP_CLOSED, TCP_SYN_SENT, TCP_SYN_RECEIVED, TCP_OPEN };

struct tcp {
	int state;
	int closing;     /* a FIN follows what we say */
	int peer_closed; /* and one came */
	int said;        /* all that is to be said was sent once */
	uint8_t mac[6];
	uint32_t peer, port, peer_port;
	uint32_t base;   /* sequence number of the first byte that we say */
	uint32_t acked;  /* how much of it, and of the FIN, was acknowledged */
	uint32_t next;   /* sequence number that we expect */
	const char *out;
	uint32_t out_length;
	uint32_t deadline, pause, tries;
	/* Bytes came, in order; may set `out` and `closing`. */
	void (*receive)(struct tcp *c, const uint8_t *data, uint32_t length);
	/* It is over; `why` is NULL where both sides closed it. */
	void (*closed)(struct tcp *c, const char *why);
};

/* The connection that is made to us, on `port`; its owner sets port and functions. */
extern struct tcp passive;
/* The one that we make. */
extern struct tcp active;

/* Connects `active` and says `out`. */
void tcp_connect(const uint8_t *mac, uint32_t peer, uint32_t peer_port, const char *out, uint32_t length);
void tcp_input(const struct datagram *in, int checked);
/* Does what is due. */
void tcp_tick(void);
/* Is there a connection, so that time matters? */
int tcp_busy(void);

#endif
