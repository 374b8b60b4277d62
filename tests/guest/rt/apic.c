/* Just enough of the local APIC and the I/O APIC (Intel SDM volume 3, chapter 11; 82093AA). */
#include "rt.h"

#define LAPIC_EOI 0xb0
#define LAPIC_SVR 0xf0
#define LAPIC_ICR_LOW 0x300
#define LAPIC_ICR_HIGH 0x310
#define LAPIC_LVT_TIMER 0x320
#define LAPIC_TIMER_COUNT 0x380
#define LAPIC_TIMER_DIVIDE 0x3e0

#define ICR_PENDING (1u << 12)
#define LVT_PERIODIC (1u << 17)

static void lapic_write(uint32_t offset, uint32_t value)
{
	mmio_write(LAPIC_BASE + offset, value);
}

static void no_handler(void) {}

void apic_init(void)
{
	/* Vector 47 is the spurious one. */
	on_vector(15, no_handler);
	lapic_write(LAPIC_SVR, 0x100 | 47);
}

void apic_eoi(void)
{
	lapic_write(LAPIC_EOI, 0);
}

void apic_timer_periodic(unsigned n, uint32_t count)
{
	lapic_write(LAPIC_TIMER_DIVIDE, 0xb); /* by 1 */
	lapic_write(LAPIC_LVT_TIMER, LVT_PERIODIC | (32 + n));
	lapic_write(LAPIC_TIMER_COUNT, count);
}

void apic_send_ipi(uint32_t apic_id, uint32_t low)
{
	lapic_write(LAPIC_ICR_HIGH, apic_id << 24);
	lapic_write(LAPIC_ICR_LOW, low);
	for (int i = 0; i < 100000 && (mmio_read(LAPIC_BASE + LAPIC_ICR_LOW) & ICR_PENDING); i++)
		;
}

void ioapic_route_edge(unsigned gsi, unsigned n)
{
	mmio_write(IOAPIC_BASE, 0x10 + 2 * gsi + 1);
	mmio_write(IOAPIC_BASE + 0x10, 0); /* to APIC id 0 */
	mmio_write(IOAPIC_BASE, 0x10 + 2 * gsi);
	mmio_write(IOAPIC_BASE + 0x10, 32 + n);
}
