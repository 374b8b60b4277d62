/* A guest that means harm: structured and random garbage to every device register, port and queue. After each round it
 * resets every device and makes one good request of each, which must be answered: the host may refuse, never break.
 *
 * `seed=` (1), `rounds=` (one of each kind, twice); the same seed sends the same garbage. `only=K` repeats kind K.
 * All addresses that are valid RAM lie in a scratch area above the guest's own image, so a device that writes where it
 * was told cannot hide a defect by breaking this program; the guest needs 20 MiB. It overwrites the disks it has.
 */
#include "hostile/attacks.h"

#define DEVICES_MAX 8

static struct virtio devices[DEVICES_MAX];
static unsigned count;

static void good_disk(struct virtio *disk, uint32_t round)
{
	static uint32_t written[128], read[128];
	for (int i = 0; i < 128; i++)
		written[i] = round << 16 | (uint32_t)i;
	if (!(disk->features & BLK_F_RO)) {
		if (blk_request(disk, BLK_OUT, 1, written, sizeof written) != BLK_OK)
			fail("a good write failed, round", round);
		if (blk_request(disk, BLK_IN, 1, read, sizeof read) != BLK_OK)
			fail("a good read failed, round", round);
		if (memcmp(read, written, sizeof read))
			fail("the disk gave back something else, round", round);
	} else if (blk_request(disk, BLK_IN, 1, read, sizeof read) != BLK_OK) {
		fail("a good read failed, round", round);
	}
}

static void good_entropy(struct virtio *rng, uint32_t round)
{
	static uint32_t bytes[4];
	uint32_t id, len = 0;
	memset(bytes, 0, sizeof bytes);
	rng->desc[0] = (struct descriptor){ (uintptr_t)bytes, sizeof bytes, DESC_WRITE, 0 };
	virtio_submit(rng, 0);
	if (!virtio_wait(rng, &id, &len) || len == 0 || len > sizeof bytes)
		fail("the entropy device did not answer, round", round);
	if (!(bytes[0] | bytes[1] | bytes[2] | bytes[3]))
		fail("entropy is all zero, round", round);
}

static void all_is_well(uint32_t round)
{
	for (unsigned n = 0; n < count; n++) {
		int wrong = virtio_start(&devices[n], BLK_F_FLUSH | F_INDIRECT | BLK_F_RO);
		if (wrong)
			fail("a device does not start again, register", (uint32_t)wrong);
		if (devices[n].id == ID_BLOCK)
			good_disk(&devices[n], round);
		else
			good_entropy(&devices[n], round);
	}
}

static void find_devices(void)
{
	static const uint32_t ids[] = { ID_BLOCK, ID_RNG };
	for (unsigned kind = 0; kind < 2; kind++)
		for (unsigned nth = 0; count < DEVICES_MAX && virtio_find(&devices[count], ids[kind], nth); nth++)
			count++;
}

static void find_ram(void)
{
	const struct memmap_entry *map = (void *)(uintptr_t)(start_info ? start_info->memmap : 0);
	for (uint32_t i = 0; map && i < start_info->memmap_entries; i++)
		if (map[i].type == 1 && map[i].addr <= SCRATCH && map[i].addr + map[i].size >= SCRATCH + SCRATCH_SIZE)
			ram_end = (uint32_t)(map[i].addr + map[i].size);
	if (!ram_end)
		fail("no RAM where the scratch memory is", SCRATCH);
}

void guest_main(void)
{
	uint32_t rounds = option("rounds", 2 * attacks_count), first = option("seed", 1);
	uint32_t only = option("only", attacks_count);
	find_ram();
	find_devices();
	if (!count)
		fail("no device", 0);
	print("hostile up: %u devices, %u rounds, seed %u\n", count, rounds, first);
	for (uint32_t round = 0; round < rounds; round++) {
		uint32_t kind = only < attacks_count ? only : round % attacks_count;
		/* Each round from its own seed, so that one can be repeated alone. */
		seed = first * 2654435761u + round * 40503u + 1;
		for (unsigned n = 0; n < count; n++)
			attacks[kind].run(&devices[n]);
		all_is_well(round);
		print("round %u ok: %s\n", round, attacks[kind].name);
	}
	print("HOSTILE SURVIVED\n");
}
