/* Ticks every 50 ms by the local APIC's timer while a disk request is outstanding: the CPU must never wait for a disk.
 * The request goes out after `wait=` ticks (0), for the host to stall the disk. Prints `tick N`, and `disk done` once the
 * request came back; after that and `ticks=` ticks (10) it powers off.
 */
#include "rt/virtio.h"

/* The timer counts down once a ns, both under KVM and in QEMU. */
#define PERIOD 50000000u

static struct virtio disk;
static volatile uint32_t ticks;

static void tick(void)
{
	ticks++;
}

void guest_main(void)
{
	static struct blk_header header = { BLK_IN, 0, 0 };
	static uint8_t data[512];
	static volatile uint8_t status = 0xff;
	uint32_t id, len, wanted = option("ticks", 10), wait = option("wait", 0), printed = 0;
	int wrong, asked = 0, done = 0;

	if (!virtio_find(&disk, ID_BLOCK, 0))
		fail("no disk", 0);
	if ((wrong = virtio_start(&disk, 0)))
		fail("the disk does not start", (uint32_t)wrong);
	disk.desc[0] = (struct descriptor){ (uintptr_t)&header, sizeof header, DESC_NEXT, 1 };
	disk.desc[1] = (struct descriptor){ (uintptr_t)data, sizeof data, DESC_NEXT | DESC_WRITE, 2 };
	disk.desc[2] = (struct descriptor){ (uintptr_t)&status, 1, DESC_WRITE, 0 };
	apic_init();
	on_vector(0, tick);
	apic_timer_periodic(0, PERIOD);
	print("ticker up\n");
	while (!done || printed < wanted) {
		if (!asked && printed >= wait) {
			virtio_submit(&disk, 0);
			asked = 1;
		}
		if (asked && !done && virtio_take(&disk, &id, &len)) {
			print("disk done, status %u\n", status);
			done = 1;
		}
		if (printed != ticks)
			print("tick %u\n", printed = ticks);
		else
			sleep_until_irq();
	}
	print("TICKER END\n");
}
