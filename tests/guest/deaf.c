/* Ignores the power button and runs for ever, sleeping. */
#include "rt/rt.h"

void guest_main(void)
{
	apic_init();
	print("deaf up\n");
	for (;;)
		sleep_until_irq();
}
