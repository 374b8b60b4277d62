/* Asks its first disk for exactly `reads=` sectors one by one, writes `writes=` times two sectors, flushes `flushes=` times,
 * and asks `bad=` times for what is past the end; says so, and sleeps for ever.
 */
#include "rt/virtio.h"

static struct virtio disk;
static uint8_t data[1024];

static void ask(uint32_t times, uint32_t type, uint32_t sector, uint32_t length, uint8_t expected)
{
	for (uint32_t n = 0; n < times; n++)
		if (blk_request(&disk, type, sector, data, length) != expected)
			fail("not the expected answer to a request of type", type);
}

void guest_main(void)
{
	int wrong;
	if (!virtio_find(&disk, ID_BLOCK, 0))
		fail("no disk", 0);
	if ((wrong = virtio_start(&disk, BLK_F_FLUSH)))
		fail("the disk does not start", (uint32_t)wrong);
	ask(option("reads", 0), BLK_IN, 3, 512, BLK_OK);
	ask(option("writes", 0), BLK_OUT, 5, 1024, BLK_OK);
	ask(option("flushes", 0), BLK_FLUSH, 0, 0, BLK_OK);
	ask(option("bad", 0), BLK_IN, mmio_read(disk.base + CONFIG), 512, BLK_IOERR);
	print("requests done\n");
	halt_for_ever();
}
