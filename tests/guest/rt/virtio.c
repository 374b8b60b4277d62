#include "virtio.h"

#define VIRTIO_MAGIC 0x74726976u
#define F_VERSION_1_HIGH 1u

static uint32_t get(const struct virtio *device, uint32_t offset)
{
	return mmio_read(device->base + offset);
}

static void set(const struct virtio *device, uint32_t offset, uint32_t value)
{
	mmio_write(device->base + offset, value);
}

uint32_t virtio_gsi(unsigned slot)
{
	uint32_t gsi = VIRTIO_FIRST_GSI + slot;
	return gsi >= GED_GSI ? gsi + 1 : gsi;
}

int virtio_find(struct virtio *device, uint32_t id, unsigned nth)
{
	for (unsigned slot = 0; slot < VIRTIO_SLOTS; slot++) {
		uint32_t base = VIRTIO_BASE + slot * VIRTIO_STRIDE;
		if (mmio_read(base + MAGIC) != VIRTIO_MAGIC || mmio_read(base + VERSION) != 2)
			continue;
		if (mmio_read(base + DEVICE_ID) != id || nth-- > 0)
			continue;
		memset(device, 0, sizeof *device);
		device->base = base;
		device->gsi = virtio_gsi(slot);
		device->id = id;
		return 1;
	}
	return 0;
}

void virtio_reset(struct virtio *device)
{
	set(device, STATUS, 0);
	/* 2.1.2: the driver waits for the status to read 0. */
	for (int i = 0; i < 1000000 && get(device, STATUS); i++)
		;
}

int virtio_negotiate(struct virtio *device, uint32_t wanted)
{
	virtio_reset(device);
	if (get(device, STATUS))
		return (int)get(device, STATUS);
	set(device, STATUS, STATUS_ACKNOWLEDGE);
	set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	set(device, DEVICE_FEATURES_SEL, 1);
	if (!(get(device, DEVICE_FEATURES) & F_VERSION_1_HIGH))
		return (int)(0x1000 | DEVICE_FEATURES);
	set(device, DEVICE_FEATURES_SEL, 0);
	device->features = get(device, DEVICE_FEATURES) & wanted;
	set(device, DRIVER_FEATURES_SEL, 0);
	set(device, DRIVER_FEATURES, device->features);
	set(device, DRIVER_FEATURES_SEL, 1);
	set(device, DRIVER_FEATURES, F_VERSION_1_HIGH);
	set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
	if (!(get(device, STATUS) & STATUS_FEATURES_OK))
		return (int)(0x1000 | STATUS);
	return 0;
}

int virtio_add_queue(struct virtio *device)
{
	memset(device->desc, 0, sizeof device->desc);
	memset(&device->avail, 0, sizeof device->avail);
	memset(&device->used, 0, sizeof device->used);
	device->seen = 0;
	set(device, QUEUE_SEL, device->queue);
	if (get(device, QUEUE_NUM_MAX) < QUEUE_SIZE)
		return (int)(0x1000 | QUEUE_NUM_MAX);
	set(device, QUEUE_NUM, QUEUE_SIZE);
	set(device, QUEUE_DESC_LOW, (uint32_t)(uintptr_t)device->desc);
	set(device, QUEUE_DESC_HIGH, 0);
	set(device, QUEUE_DRIVER_LOW, (uint32_t)(uintptr_t)&device->avail);
	set(device, QUEUE_DRIVER_HIGH, 0);
	set(device, QUEUE_DEVICE_LOW, (uint32_t)(uintptr_t)&device->used);
	set(device, QUEUE_DEVICE_HIGH, 0);
	set(device, QUEUE_READY, 1);
	return get(device, QUEUE_READY) == 1 ? 0 : (int)(0x1000 | QUEUE_READY);
}

void virtio_go(struct virtio *device)
{
	set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

int virtio_start(struct virtio *device, uint32_t wanted)
{
	int wrong = virtio_negotiate(device, wanted);
	if (wrong || (wrong = virtio_add_queue(device)))
		return wrong;
	virtio_go(device);
	return 0;
}

void virtio_submit(struct virtio *device, uint16_t head)
{
	device->avail.ring[device->avail.index % QUEUE_SIZE] = head;
	__asm__ volatile("" : : : "memory");
	device->avail.index++;
	__asm__ volatile("lock; orl $0, (%%esp)" : : : "memory");
	set(device, QUEUE_NOTIFY, device->queue);
}

int virtio_take(struct virtio *device, uint32_t *id, uint32_t *len)
{
	if (device->used.index == device->seen)
		return 0;
	__asm__ volatile("" : : : "memory");
	*id = device->used.ring[device->seen % QUEUE_SIZE].id;
	*len = device->used.ring[device->seen % QUEUE_SIZE].len;
	device->seen++;
	return 1;
}

int virtio_wait(struct virtio *device, uint32_t *id, uint32_t *len)
{
	/* A read of a register leaves the guest, which gives the host's other threads their turn. */
	for (int i = 0; i < 2000000; i++) {
		if (virtio_take(device, id, len))
			return 1;
		if (get(device, STATUS) & STATUS_NEEDS_RESET)
			return 0;
	}
	return 0;
}

uint8_t blk_request(struct virtio *device, uint32_t type, uint64_t sector, void *data, uint32_t length)
{
	static struct blk_header header;
	static volatile uint8_t status;
	uint32_t id, len;
	uint16_t last = length ? 2 : 1;

	header = (struct blk_header){ type, 0, sector };
	status = 0xff;
	device->desc[0] = (struct descriptor){ (uintptr_t)&header, sizeof header, DESC_NEXT, 1 };
	if (length)
		device->desc[1] = (struct descriptor){ (uintptr_t)data, length,
						       (uint16_t)(DESC_NEXT | (type == BLK_OUT ? 0 : DESC_WRITE)), 2 };
	device->desc[last] = (struct descriptor){ (uintptr_t)&status, 1, DESC_WRITE, 0 };
	virtio_submit(device, 0);
	return virtio_wait(device, &id, &len) && id == 0 ? status : 255;
}
