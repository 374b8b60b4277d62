/* A minimal driver of virtio-mmio version 2 (virtio 1.2, 4.2) with split queues, and virtio-blk requests. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "rt.h"

/* Register offsets, 4.2.2. */
enum {
	MAGIC = 0x000,
	VERSION = 0x004,
	DEVICE_ID = 0x008,
	DEVICE_FEATURES = 0x010,
	DEVICE_FEATURES_SEL = 0x014,
	DRIVER_FEATURES = 0x020,
	DRIVER_FEATURES_SEL = 0x024,
	QUEUE_SEL = 0x030,
	QUEUE_NUM_MAX = 0x034,
	QUEUE_NUM = 0x038,
	QUEUE_READY = 0x044,
	QUEUE_NOTIFY = 0x050,
	INTERRUPT_STATUS = 0x060,
	INTERRUPT_ACK = 0x064,
	STATUS = 0x070,
	QUEUE_DESC_LOW = 0x080,
	QUEUE_DESC_HIGH = 0x084,
	QUEUE_DRIVER_LOW = 0x090,
	QUEUE_DRIVER_HIGH = 0x094,
	QUEUE_DEVICE_LOW = 0x0a0,
	QUEUE_DEVICE_HIGH = 0x0a4,
	CONFIG_GENERATION = 0x0fc,
	CONFIG = 0x100,
};

enum { STATUS_ACKNOWLEDGE = 1, STATUS_DRIVER = 2, STATUS_DRIVER_OK = 4, STATUS_FEATURES_OK = 8, STATUS_NEEDS_RESET = 64 };
enum { ID_NET = 1, ID_BLOCK = 2, ID_RNG = 4 };
enum { AVAIL_NO_INTERRUPT = 1 };
enum { DESC_NEXT = 1, DESC_WRITE = 2, DESC_INDIRECT = 4 };
enum { F_INDIRECT = 1u << 28, F_EVENT_IDX = 1u << 29 };
enum { BLK_F_RO = 1u << 5, BLK_F_FLUSH = 1u << 9 };
enum { BLK_IN = 0, BLK_OUT = 1, BLK_FLUSH = 4, BLK_GET_ID = 8 };
enum { BLK_OK = 0, BLK_IOERR = 1, BLK_UNSUPP = 2 };

#define QUEUE_SIZE 16u

struct descriptor {
	uint64_t addr;
	uint32_t len;
	uint16_t flags;
	uint16_t next;
};
struct available {
	uint16_t flags;
	volatile uint16_t index;
	uint16_t ring[QUEUE_SIZE];
	uint16_t used_event;
};
struct used {
	volatile uint16_t flags;
	volatile uint16_t index;
	volatile struct {
		uint32_t id;
		uint32_t len;
	} ring[QUEUE_SIZE];
	uint16_t avail_event;
};

/* A device with one of its queues; a device with several has one of these for each. */
struct virtio {
	uint32_t base;
	uint32_t queue; /* index of the queue */
	uint32_t gsi;
	uint32_t id;
	uint32_t features; /* bits 0 to 31 of what was agreed on */
	uint16_t seen;     /* used index up to which completions were taken */
	struct descriptor desc[QUEUE_SIZE] __attribute__((aligned(16)));
	struct available avail __attribute__((aligned(4)));
	struct used used __attribute__((aligned(8)));
};

/* Header of a virtio-blk request, 5.2.6. */
struct blk_header {
	uint32_t type;
	uint32_t reserved;
	uint64_t sector;
};

/* GSI of a window. */
uint32_t virtio_gsi(unsigned slot);
/* The n-th device (from 0) with this id, not yet set up; 0 where there is none. */
int virtio_find(struct virtio *device, uint32_t id, unsigned nth);
/* Reset, features (what is `wanted` and offered, VERSION_1 always), queue 0 of QUEUE_SIZE, DRIVER_OK. Returns 0, or the
 * register value that was not what it must be. */
int virtio_start(struct virtio *device, uint32_t wanted);
void virtio_reset(struct virtio *device);
/* What virtio_start does, in its three steps, for a device with more queues: up to FEATURES_OK; a queue (the one of
 * `queue`); DRIVER_OK. Those that return something return it as virtio_start does. */
int virtio_negotiate(struct virtio *device, uint32_t wanted);
int virtio_add_queue(struct virtio *device);
void virtio_go(struct virtio *device);
/* Makes the chain that begins at this descriptor available, and notifies. */
void virtio_submit(struct virtio *device, uint16_t head);
/* True once a completion came that was not taken yet; takes it. */
int virtio_take(struct virtio *device, uint32_t *id, uint32_t *len);
/* Polls for a completion; 0 where none came in a long time. */
int virtio_wait(struct virtio *device, uint32_t *id, uint32_t *len);

/* One disk request, polled: header, one data buffer (or none with length 0), status. Returns the status byte, or 255
 * where no completion came. */
uint8_t blk_request(struct virtio *device, uint32_t type, uint64_t sector, void *data, uint32_t length);

#endif
