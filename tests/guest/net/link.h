/* The network interface: frames in, frames out, and the sleep between them. */
#ifndef LINK_H
#define LINK_H

#include "../rt/virtio.h"

/* struct virtio_net_hdr_v1, virtio 1.2, 5.1.6. */
struct net_header {
	uint8_t flags;
	uint8_t gso_type;
	uint16_t hdr_len;
	uint16_t gso_size;
	uint16_t csum_start;
	uint16_t csum_offset;
	uint16_t num_buffers;
};
enum { NET_NEEDS_CSUM = 1, NET_DATA_VALID = 2 };
enum { NET_F_CSUM = 1u << 0, NET_F_GUEST_CSUM = 1u << 1, NET_F_MAC = 1u << 5, NET_F_HOST_TSO4 = 1u << 11 };

/* Ethernet's usual frame, without its check sequence. */
#define FRAME_MAX 1514u

extern uint8_t link_mac[6];

/* Brings up the n-th interface, also anew; ends the guest where there is none. `extra` are features beside those that are
 * needed here, for one who builds virtio's headers for himself. */
void link_up(unsigned nth, uint32_t extra);
/* The next frame that came, or NULL; it stays until link_release. `checked`: the host vouches for its checksums. */
const uint8_t *link_receive(uint32_t *length, int *checked);
void link_release(void);
/* Where the next frame is to be built, FRAME_MAX bytes. */
uint8_t *link_buffer(void);
/* Sends what is in it. */
void link_send(uint32_t length);
/* Sends any bytes as they are, virtio's header included (as much of it as there is), and waits until the device is done with
 * them. 0 where it stopped instead and needs a reset (link_up). */
int link_send_raw(const struct net_header *header, uint32_t header_length, const void *frame, uint32_t length);

/* Tenths of seconds; they pass while somebody waits for them only. */
#define TICKS_PER_SECOND 10u
extern volatile uint32_t ticks;
/* A number that differs from one start to the next. */
uint32_t chance(void);
/* Sleeps until a frame came or, where `timed`, a tick passed. The power button ends the guest. */
void wait_for_event(int timed);

#endif
