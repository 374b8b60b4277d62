/* Reads, writes and verifies a virtio disk (`disk=`, 0 without it) from sector `from=` on: every kind of request, every
 * shape of chain, and what must be refused. One line for each, `BLOCK PASS` or `BLOCK FAIL` at the end.
 *
 * Sector s holds the 32-bit words seed ^ (s << 8 | word number), for the host to check (`seed=`).
 */
#include "rt/virtio.h"

#define SECTOR 512u
#define WORDS (SECTOR / 4)

static struct virtio disk;
static uint32_t seed, from, failures;
static uint32_t buffer[16 * WORDS], second[16 * WORDS];

static void verdict(const char *what, int good)
{
	print("%s %s\n", good ? "PASS" : "FAIL", what);
	failures += !good;
}

static void fill(uint32_t *words, uint32_t sector, uint32_t count)
{
	for (uint32_t i = 0; i < count * WORDS; i++)
		words[i] = seed ^ ((sector + i / WORDS) << 8 | i % WORDS);
}

static int holds(const uint32_t *words, uint32_t sector, uint32_t count)
{
	for (uint32_t i = 0; i < count * WORDS; i++)
		if (words[i] != (seed ^ ((sector + i / WORDS) << 8 | i % WORDS)))
			return 0;
	return 1;
}

static struct blk_header headers[QUEUE_SIZE];
static volatile uint8_t statuses[QUEUE_SIZE];

/* A request whose data lies in pieces of these lengths (bytes, ended by 0), as a chain in `table`. Returns its length. */
static uint16_t chain(struct descriptor *table, uint16_t n, uint32_t type, uint32_t sector, void *data,
		      const uint32_t *lengths)
{
	uint16_t at = 0;
	uintptr_t address = (uintptr_t)data;
	headers[n] = (struct blk_header){ type, 0, sector };
	statuses[n] = 0xff;
	table[at] = (struct descriptor){ (uintptr_t)&headers[n], sizeof headers[n], DESC_NEXT, 1 };
	for (at = 1; *lengths; lengths++, at++) {
		table[at] = (struct descriptor){ address, *lengths,
						 (uint16_t)(DESC_NEXT | (type == BLK_OUT ? 0 : DESC_WRITE)),
						 (uint16_t)(at + 1) };
		address += *lengths;
	}
	table[at] = (struct descriptor){ (uintptr_t)&statuses[n], 1, DESC_WRITE, 0 };
	return (uint16_t)(at + 1);
}

static int segmented(uint32_t type, uint32_t sector, void *data, const uint32_t *lengths)
{
	uint32_t id, len, bytes = 1;
	chain(disk.desc, 0, type, sector, data, lengths);
	for (; type == BLK_IN && *lengths; lengths++)
		bytes += *lengths;
	virtio_submit(&disk, 0);
	return virtio_wait(&disk, &id, &len) && id == 0 && statuses[0] == BLK_OK && len == bytes;
}

static int indirect(uint32_t type, uint32_t sector, void *data, const uint32_t *lengths)
{
	static struct descriptor table[8] __attribute__((aligned(16)));
	uint32_t id, len;
	uint32_t size = chain(table, 0, type, sector, data, lengths) * (uint32_t)sizeof table[0];
	disk.desc[3] = (struct descriptor){ (uintptr_t)table, size, DESC_INDIRECT, 0 };
	virtio_submit(&disk, 3);
	return virtio_wait(&disk, &id, &len) && id == 3 && statuses[0] == BLK_OK;
}

/* Five requests in the queue at once, one sector each; each must be answered once. */
static int many(void)
{
	uint32_t id, len, answered = 0;
	static const uint32_t one[] = { SECTOR, 0 };
	memset(second, 0, sizeof second);
	for (uint16_t n = 0; n < 5; n++) {
		struct descriptor *three = &disk.desc[3 * n];
		chain(three, n, BLK_IN, from + n, second + n * WORDS, one);
		three[0].next = (uint16_t)(3 * n + 1);
		three[1].next = (uint16_t)(3 * n + 2);
	}
	for (uint16_t n = 0; n < 5; n++)
		virtio_submit(&disk, (uint16_t)(3 * n));
	for (int n = 0; n < 5; n++) {
		if (!virtio_wait(&disk, &id, &len) || id % 3 || id > 12 || statuses[id / 3] != BLK_OK)
			return 0;
		answered |= 1u << id / 3;
	}
	return answered == 0x1f && holds(second, from, 5);
}

static void on_interrupt(void)
{
	mmio_write(disk.base + INTERRUPT_ACK, mmio_read(disk.base + INTERRUPT_STATUS));
}

/* The completion must wake a CPU that sleeps, and be acknowledged. The interrupt of an earlier request, which was polled
 * for, may come late and wake it as well. */
static int by_interrupt(void)
{
	static const uint32_t one[] = { SECTOR, 0 };
	uint32_t id, len;
	mmio_write(disk.base + INTERRUPT_ACK, mmio_read(disk.base + INTERRUPT_STATUS));
	on_vector(1, on_interrupt);
	apic_init();
	ioapic_route_edge(disk.gsi, 1);
	chain(disk.desc, 0, BLK_IN, from, second, one);
	virtio_submit(&disk, 0);
	do
		sleep_until_irq();
	while (!virtio_take(&disk, &id, &len));
	if (mmio_read(disk.base + INTERRUPT_STATUS))
		sleep_until_irq();
	return statuses[0] == BLK_OK && !mmio_read(disk.base + INTERRUPT_STATUS);
}

static void writes(void)
{
	static const uint32_t pieces[] = { 512, 1536, 100, 412, 1536, 0 }, other[] = { 4, 508, 2048, 1024, 512, 0 };
	seed += 0x01010101;
	fill(buffer, from, 16);
	verdict("write", blk_request(&disk, BLK_OUT, from, buffer, sizeof buffer) == BLK_OK);
	verdict("flush", blk_request(&disk, BLK_FLUSH, 0, NULL, 0) == BLK_OK);
	verdict("read back", blk_request(&disk, BLK_IN, from, second, sizeof second) == BLK_OK && holds(second, from, 16));
	seed += 0x01010101;
	fill(buffer, from, 16);
	memset(second, 0, sizeof second);
	verdict("segments written", segmented(BLK_OUT, from, buffer, pieces));
	verdict("segments read", segmented(BLK_IN, from, second, other) && holds(second, from, 8));
	verdict("indirect written", indirect(BLK_OUT, from + 8, buffer + 8 * WORDS, pieces));
	memset(second, 0, sizeof second);
	verdict("indirect read", indirect(BLK_IN, from, second, pieces) && holds(second, from, 8));
	verdict("whole again", blk_request(&disk, BLK_IN, from, second, sizeof second) == BLK_OK && holds(second, from, 16));
	verdict("many at once", many());
}

void guest_main(void)
{
	char id[21] = { 0 };
	int wrong;
	if (!virtio_find(&disk, ID_BLOCK, option("disk", 0)))
		fail("no such disk", option("disk", 0));
	if ((wrong = virtio_start(&disk, F_INDIRECT | BLK_F_FLUSH | BLK_F_RO)))
		fail("the disk does not start", (uint32_t)wrong);
	seed = option("seed", 0x5eed);
	from = option("from", 0);
	uint32_t capacity = mmio_read(disk.base + CONFIG), high = mmio_read(disk.base + CONFIG + 4);
	print("disk of %u KiB, features 0x%x\n", capacity / 2 + (high << 31), disk.features);
	verdict("get id", blk_request(&disk, BLK_GET_ID, 0, id, 20) == BLK_OK);
	print("id '%s'\n", id);
	verdict("indirect descriptors and flush are offered", (disk.features & (F_INDIRECT | BLK_F_FLUSH)) == (F_INDIRECT | BLK_F_FLUSH));
	if (disk.features & BLK_F_RO) {
		print("read only\n");
		fill(buffer, from, 1);
		verdict("a write is refused", blk_request(&disk, BLK_OUT, from, buffer, SECTOR) == BLK_IOERR);
		verdict("a read is not", blk_request(&disk, BLK_IN, from, second, SECTOR) == BLK_OK);
	} else {
		writes();
	}
	verdict("last sector", high || blk_request(&disk, BLK_IN, capacity - 1, second, SECTOR) == BLK_OK);
	verdict("past the end is refused", high || blk_request(&disk, BLK_IN, capacity, second, SECTOR) == BLK_IOERR);
	verdict("across the end is refused", high || blk_request(&disk, BLK_IN, capacity - 1, second, 2 * SECTOR) == BLK_IOERR);
	verdict("unknown type is refused", blk_request(&disk, 99, 0, second, SECTOR) == BLK_UNSUPP);
	verdict("interrupt", by_interrupt());
	if (failures)
		print("BLOCK FAIL %u\n", failures);
	else
		print("BLOCK PASS\n");
}
