/* What the hostile guest does to one device: structured and random garbage. Everything comes from `seed`. */
#include "attacks.h"

struct queue {
	struct descriptor *desc;
	struct available *avail;
	volatile struct used *used;
};

uint32_t seed, ram_end;

/* A whole queue in scratch memory, for requests that are not meant well. */
static const struct queue evil = { (void *)SCRATCH, (void *)(SCRATCH + 0x1000), (void *)(SCRATCH + 0x2000) };
#define HEADER (SCRATCH + 0x3000)
#define STATUS_BYTE (SCRATCH + 0x3100)
#define TABLE (SCRATCH + 0x4000)
#define DATA (SCRATCH + 0x10000)
#define DATA_SIZE 0x10000u

static uint32_t below(uint32_t limit)
{
	return random32(&seed) % limit;
}

static void set(const struct virtio *device, uint32_t offset, uint32_t value)
{
	mmio_write(device->base + offset, value);
}

/* Numbers that have broken things before: edges, signs, sizes of the queue, of RAM and of a sector. */
static uint32_t nasty32(void)
{
	static const uint32_t known[] = { 0, 1, 2, 3, 15, 16, 17, 255, 256, 511, 512, 513, 0x7fff, 0x8000, 0xffff, 0x10000,
					  0x7fffffff, 0x80000000, 0xfffffe00, 0xfffff000, 0xffffffff };
	return below(4) ? known[below(sizeof known / sizeof known[0])] : random32(&seed);
}

static uint64_t nasty_address(void)
{
	switch (below(10)) {
	case 0:
		return VIRTIO_BASE + below(0x4000);
	case 1:
		return ram_end - below(64); /* ends inside, reaches out */
	case 2:
		return ram_end + below(4096);
	case 3:
		return 0xfffffffffffff000ull + below(4096);
	case 4:
		return (uint64_t)nasty32() << 32 | nasty32() | 0x100000000ull;
	case 5:
		return LAPIC_BASE + below(4096);
	default:
		return SCRATCH + below(SCRATCH_SIZE - 0x1000);
	}
}

/* The device with its queue in `evil`, up and running. */
static void start_evil(struct virtio *device)
{
	virtio_start(device, F_INDIRECT | BLK_F_FLUSH | F_EVENT_IDX);
	set(device, STATUS, 0);
	memset((void *)SCRATCH, 0, 0x5000);
	set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
	set(device, DRIVER_FEATURES_SEL, 0);
	set(device, DRIVER_FEATURES, device->features);
	set(device, DRIVER_FEATURES_SEL, 1);
	set(device, DRIVER_FEATURES, 1);
	set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
	set(device, QUEUE_SEL, 0);
	set(device, QUEUE_NUM, QUEUE_SIZE);
	set(device, QUEUE_DESC_LOW, (uint32_t)(uintptr_t)evil.desc);
	set(device, QUEUE_DESC_HIGH, 0);
	set(device, QUEUE_DRIVER_LOW, (uint32_t)(uintptr_t)evil.avail);
	set(device, QUEUE_DRIVER_HIGH, 0);
	set(device, QUEUE_DEVICE_LOW, (uint32_t)(uintptr_t)evil.used);
	set(device, QUEUE_DEVICE_HIGH, 0);
	set(device, QUEUE_READY, 1);
	set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_DRIVER_OK);
}

/* Makes chain `head` available in `evil` and notifies; gives the device a moment, so that most requests are looked at. */
static void send(const struct virtio *device, uint16_t head)
{
	evil.avail->ring[evil.avail->index % QUEUE_SIZE] = head;
	evil.avail->index++;
	set(device, QUEUE_NOTIFY, 0);
	for (int i = 0; i < 20; i++)
		mmio_read(device->base + STATUS);
}

static struct descriptor descriptor(uint64_t addr, uint32_t len, uint16_t flags, uint16_t next)
{
	return (struct descriptor){ addr, len, flags, next };
}

/* A well-formed disk read in `evil`, to be spoilt. */
static void plain_request(uint32_t type)
{
	*(struct blk_header *)HEADER = (struct blk_header){ type, 0, below(8) };
	evil.desc[0] = descriptor(HEADER, 16, DESC_NEXT, 1);
	evil.desc[1] = descriptor(DATA, 512, (uint16_t)(DESC_NEXT | (type == BLK_OUT ? 0 : DESC_WRITE)), 2);
	evil.desc[2] = descriptor(STATUS_BYTE, 1, DESC_WRITE, 0);
}

static void registers(struct virtio *device)
{
	for (int i = 0; i < 300; i++) {
		uintptr_t at = device->base + (below(3) ? below(0x120) : below(0x1000));
		switch (below(6)) {
		case 0:
			*(volatile uint8_t *)at = (uint8_t)nasty32();
			break;
		case 1:
			*(volatile uint16_t *)at = (uint16_t)nasty32();
			break;
		case 2:
			(void)*(volatile uint8_t *)at;
			break;
		case 3:
			(void)*(volatile uint32_t *)at;
			break;
		default:
			*(volatile uint32_t *)(at & ~3u) = nasty32();
		}
	}
}

static void loops(struct virtio *device)
{
	start_evil(device);
	for (int i = 0; i < 20; i++) {
		uint16_t length = (uint16_t)(1 + below(QUEUE_SIZE));
		plain_request(BLK_IN);
		for (uint16_t n = 1; n < length; n++)
			evil.desc[n] = descriptor(DATA, 512, DESC_NEXT | DESC_WRITE, (uint16_t)(n + 1));
		/* Back into the chain, most often to its end. */
		evil.desc[length - 1].flags = DESC_NEXT | (length > 1 ? DESC_WRITE : 0);
		evil.desc[length - 1].next = (uint16_t)below(length);
		send(device, 0);
	}
}

static void lengths(struct virtio *device)
{
	start_evil(device);
	for (int i = 0; i < 40; i++) {
		plain_request(below(2) ? BLK_IN : BLK_OUT);
		struct descriptor *spoilt = &evil.desc[below(3)];
		if (below(2))
			spoilt->addr = nasty_address();
		spoilt->len = nasty32();
		/* What is valid must not reach beyond scratch memory: only lengths that end there or beyond RAM. */
		if (spoilt->addr < ram_end && spoilt->len > DATA_SIZE && spoilt->addr + spoilt->len <= ram_end)
			spoilt->len = 0xfffffff0;
		send(device, 0);
	}
}

static void indices(struct virtio *device)
{
	for (int i = 0; i < 20; i++) {
		start_evil(device);
		plain_request(BLK_IN);
		switch (below(4)) {
		case 0: /* a head outside of the table */
			send(device, (uint16_t)(QUEUE_SIZE + below(65536 - QUEUE_SIZE)));
			break;
		case 1: /* an index that runs ahead by more than the queue holds */
			evil.avail->index = (uint16_t)(QUEUE_SIZE + 1 + below(60000));
			send(device, 0);
			break;
		case 2: /* an index that goes back */
			send(device, 0);
			evil.avail->index = (uint16_t)(evil.avail->index - 2);
			send(device, 0);
			break;
		default: /* a next outside of the table */
			evil.desc[1].next = (uint16_t)(QUEUE_SIZE + below(65536 - QUEUE_SIZE));
			send(device, 0);
		}
	}
}

/* CVE-2026-5747: the size and the addresses that were true at activation are the ones that count. */
static void changed_after_activation(struct virtio *device)
{
	for (int i = 0; i < 10; i++) {
		start_evil(device);
		plain_request(BLK_IN);
		set(device, QUEUE_NUM, nasty32());
		if (below(2))
			set(device, QUEUE_DESC_HIGH, nasty32());
		if (below(2))
			set(device, QUEUE_DEVICE_LOW, ram_end - 4);
		if (below(2))
			set(device, QUEUE_READY, below(2));
		if (below(2))
			set(device, QUEUE_SEL, nasty32());
		if (below(2))
			set(device, DRIVER_FEATURES, nasty32());
		for (uint16_t head = 0; head < 20; head++)
			send(device, head);
	}
}

static void bad_activation(struct virtio *device)
{
	for (int i = 0; i < 20; i++) {
		uint64_t desc = nasty_address(), driver = nasty_address(), used = nasty_address();
		set(device, STATUS, 0);
		set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
		set(device, DRIVER_FEATURES_SEL, 1);
		set(device, DRIVER_FEATURES, 1);
		set(device, STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK);
		set(device, QUEUE_SEL, below(4) ? 0 : nasty32());
		set(device, QUEUE_NUM, nasty32());
		set(device, QUEUE_DESC_LOW, (uint32_t)desc);
		set(device, QUEUE_DESC_HIGH, (uint32_t)(desc >> 32));
		set(device, QUEUE_DRIVER_LOW, (uint32_t)driver);
		set(device, QUEUE_DRIVER_HIGH, (uint32_t)(driver >> 32));
		set(device, QUEUE_DEVICE_LOW, (uint32_t)used);
		set(device, QUEUE_DEVICE_HIGH, (uint32_t)(used >> 32));
		set(device, QUEUE_READY, 1);
		set(device, STATUS, 15);
		set(device, QUEUE_NOTIFY, below(2) ? 0 : nasty32());
	}
}

static void kicks(struct virtio *device)
{
	start_evil(device);
	plain_request(BLK_IN);
	for (int i = 0; i < 2000; i++)
		set(device, QUEUE_NOTIFY, below(8) ? 0 : nasty32());
	send(device, 0);
}

/* CVE-2026-45782: what was in flight when the device was reset must not write to the guest afterwards. */
static void reset_in_flight(struct virtio *device)
{
	for (int i = 0; i < 10; i++) {
		start_evil(device);
		plain_request(BLK_IN);
		evil.desc[1].len = DATA_SIZE;
		for (int n = 0; n < 8; n++)
			evil.avail->ring[n] = 0;
		evil.avail->index = (uint16_t)(1 + below(8));
		set(device, QUEUE_NOTIFY, 0);
		virtio_reset(device);
		memset((void *)DATA, 0x5a, 512);
		for (int n = 0; n < 50; n++)
			mmio_read(device->base + STATUS);
		for (uint32_t n = 0; n < 512; n++)
			if (*(volatile uint8_t *)(DATA + n) != 0x5a)
				fail("the device wrote after its reset, byte", n);
	}
}

static void indirects(struct virtio *device)
{
	struct descriptor *table = (void *)TABLE;
	start_evil(device);
	for (int i = 0; i < 40; i++) {
		plain_request(BLK_IN);
		memcpy(table, evil.desc, 3 * sizeof *table);
		evil.desc[0] = descriptor(TABLE, 48, DESC_INDIRECT, 0);
		switch (below(6)) {
		case 0: /* nested */
			table[below(3)] = descriptor(TABLE, 48, DESC_INDIRECT, 0);
			break;
		case 1: /* a length that is no table's */
			evil.desc[0].len = nasty32();
			break;
		case 2: /* followed by another */
			evil.desc[0].flags |= DESC_NEXT | (below(2) ? DESC_WRITE : 0);
			evil.desc[0].next = (uint16_t)below(3);
			break;
		case 3:
			evil.desc[0].addr = nasty_address();
			break;
		case 4: /* a loop within */
			table[2] = descriptor(DATA, 512, DESC_NEXT | DESC_WRITE, (uint16_t)below(3));
			break;
		default: /* a next beyond the table */
			table[1].next = (uint16_t)(3 + below(60000));
		}
		send(device, 0);
	}
}

static void headers(struct virtio *device)
{
	struct blk_header *header = (void *)HEADER;
	start_evil(device);
	for (int i = 0; i < 60; i++) {
		plain_request(below(2) ? BLK_IN : BLK_OUT);
		switch (below(7)) {
		case 0:
			header->type = nasty32();
			break;
		case 1:
			header->sector = (uint64_t)nasty32() << 32 | nasty32();
			break;
		case 2: /* a length that is not whole sectors, or none */
			evil.desc[1].len = below(3) ? below(2048) : 0;
			break;
		case 3: /* the wrong direction */
			evil.desc[below(3)].flags ^= DESC_WRITE;
			break;
		case 4: /* a header that is too short, or split */
			evil.desc[0].len = below(20);
			break;
		case 5: /* nothing but a header, or nothing but a status */
			evil.desc[0] = below(2) ? descriptor(HEADER, 16, 0, 0) : descriptor(STATUS_BYTE, 1, DESC_WRITE, 0);
			break;
		default: /* a status of no or of many bytes */
			evil.desc[2].len = below(2) ? 0 : 1 + below(4096);
		}
		send(device, 0);
	}
}

static void status_nonsense(struct virtio *device)
{
	for (int i = 0; i < 100; i++) {
		set(device, STATUS, below(3) ? below(256) : nasty32());
		set(device, DRIVER_FEATURES_SEL, below(4));
		set(device, DRIVER_FEATURES, random32(&seed));
		set(device, DEVICE_FEATURES_SEL, nasty32());
		mmio_read(device->base + DEVICE_FEATURES);
		set(device, QUEUE_NOTIFY, 0);
		set(device, INTERRUPT_ACK, nasty32());
	}
}

/* The data of a read goes into the tables of the queue that is being read. */
static void self_modifying(struct virtio *device)
{
	for (int i = 0; i < 10; i++) {
		start_evil(device);
		plain_request(BLK_IN);
		evil.desc[1].addr = SCRATCH + 0x1000 * below(3);
		for (int n = 0; n < 8; n++)
			evil.avail->ring[n] = 0;
		evil.avail->index = 8;
		set(device, QUEUE_NOTIFY, 0);
		for (int n = 0; n < 50; n++)
			mmio_read(device->base + STATUS);
		/* Rings on top of each other. */
		set(device, STATUS, 0);
		set(device, QUEUE_DEVICE_LOW, SCRATCH + 16 * below(300));
		set(device, QUEUE_READY, 1);
		set(device, STATUS, 15);
		send(device, 0);
	}
}

static void random_queue(struct virtio *device)
{
	for (int i = 0; i < 10; i++) {
		start_evil(device);
		for (unsigned n = 0; n < QUEUE_SIZE; n++) {
			evil.desc[n] = descriptor(nasty_address(), below(2) ? below(4096) : 0xffffff00u | below(256),
						  (uint16_t)below(8), (uint16_t)(below(8) ? below(QUEUE_SIZE) : nasty32()));
			((struct descriptor *)TABLE)[n] = evil.desc[n];
		}
		for (unsigned n = 0; n < QUEUE_SIZE; n++)
			send(device, (uint16_t)n);
	}
}

/* Ports: all of them are read; what is written leaves out the few bytes that would end the VM as they should. */
static int may_write(uint32_t port)
{
	return !(port + 3 >= I8042_COMMAND && port <= I8042_COMMAND) &&
	       !(port + 3 >= SLEEP_CONTROL_PORT && port <= SLEEP_CONTROL_PORT) &&
	       !(port + 3 >= RESET_PORT && port <= RESET_PORT) && !(port + 3 >= COM1 && port <= COM1) &&
	       !(port >= 0x70 && port <= 0x92) && port != 0xcf9;
}

static void write_port(uint16_t port, uint32_t value)
{
	switch (below(3)) {
	case 0:
		outb(port, (uint8_t)value);
		break;
	case 1:
		outw(port, (uint16_t)value);
		break;
	default:
		outl(port, value);
	}
}

static void ports(struct virtio *device)
{
	static const uint16_t known[] = { COM1, COM1 - 3, I8042_COMMAND - 4, POWER_PORT, POWER_PORT - 2, 0xcf8, 0x40, 0x20, 0xa0 };
	(void)device;
	for (int i = 0; i < 400; i++) {
		uint16_t port = below(4) ? (uint16_t)(known[below(9)] + below(12)) : (uint16_t)random32(&seed);
		uint32_t sink[4];
		void *to = sink;
		uint32_t bytes = 1 + below(3);
		switch (below(5)) {
		case 0:
			inb(port);
			break;
		case 1:
			inw(port);
			break;
		case 2:
			inl(port);
			break;
		case 3:
			__asm__ volatile("rep insb" : "+D"(to), "+c"(bytes) : "d"(port) : "memory");
			break;
		default:
			if (may_write(port))
				write_port(port, nasty32());
		}
	}
	outb(I8042_COMMAND, 0xaa);
	outb(SLEEP_CONTROL_PORT, 5 << 2); /* a sleep type without "now" */
	outb(COM1 + 3, 3);                /* 8 bits, no divisor latch, no loop-back: the console again */
	outb(COM1 + 4, 0);
	outb(COM1 + 1, 0);
	outb(COM1 + 2, 7);
}

const struct attack attacks[] = {
	{ "registers", registers },
	{ "descriptor loops", loops },
	{ "lengths past RAM", lengths },
	{ "bad indices", indices },
	{ "changes after activation", changed_after_activation },
	{ "bad activation", bad_activation },
	{ "kick flood", kicks },
	{ "reset in flight", reset_in_flight },
	{ "indirect tables", indirects },
	{ "request headers", headers },
	{ "status nonsense", status_nonsense },
	{ "self-modifying queue", self_modifying },
	{ "random queue", random_queue },
	{ "ports", ports },
};
const uint32_t attacks_count = sizeof attacks / sizeof attacks[0];
