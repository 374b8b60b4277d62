/* Counts in RAM for ever, each of `cpus=` CPUs (1) in a word of its own, for the host to see who runs. CPU n's word is at
 * COUNTERS + 64 n. With `exits=1` each step is a read of a port, which the VMM answers; with `sleep=1` the first CPU sleeps
 * between two steps until its timer wakes it.
 */
#include "rt/cpus.h"

#define COUNTERS 0x200000u
/* The timer counts down once a ns. */
#define PERIOD 500000u

static uint32_t exits;

static volatile uint32_t *counter(uint32_t id)
{
	return (volatile uint32_t *)(uintptr_t)(COUNTERS + 64 * id);
}

void cpu_main(uint32_t id)
{
	for (;;) {
		if (exits)
			inb(GED_SELECT_PORT);
		++*counter(id);
	}
}

static void tick(void) {}

static void sleeper(void)
{
	on_vector(0, tick);
	apic_timer_periodic(0, PERIOD);
	for (;;) {
		sleep_until_irq();
		++*counter(0);
	}
}

void guest_main(void)
{
	exits = option("exits", 0);
	apic_init();
	cpus_start(option("cpus", 1));
	print("counter up\n");
	if (option("sleep", 0))
		sleeper();
	cpu_main(0);
}
