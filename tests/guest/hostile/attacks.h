#ifndef ATTACKS_H
#define ATTACKS_H

#include "../rt/virtio.h"

/* Where attacks have their queues and buffers: RAM above the guest's own image, and nothing of ours above it. */
#define SCRATCH 0x1200000u
#define SCRATCH_SIZE 0x100000u

struct attack {
	const char *name;
	void (*run)(struct virtio *device);
};
extern const struct attack attacks[];
extern const uint32_t attacks_count;

/* State of the random numbers, and the end of the RAM that the scratch area is in. */
extern uint32_t seed, ram_end;

#endif
