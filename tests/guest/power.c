/* Sleeps until the power button's interrupt comes, says so, and switches itself off. */
#include "rt/rt.h"

static volatile uint32_t events, interrupts;

/* What the _EVT method of the Generic Event Device does: read the event select, which clears it. */
static void on_event(void)
{
	events |= inb(GED_SELECT_PORT);
	interrupts++;
}

void guest_main(void)
{
	apic_init();
	on_vector(0, on_event);
	ioapic_route_edge(GED_GSI, 0);
	print("power up\n");
	while (!(events & GED_POWER_BUTTON))
		sleep_until_irq();
	print("power button after %u interrupts\n", interrupts);
}
