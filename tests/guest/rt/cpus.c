/* The other CPUs: INIT and start-up IPI, one after the other. */
#include "cpus.h"

/* A page of RAM below 1 MiB that no table of the loader occupies any more once our own are in force. */
#define TRAMPOLINE 0x70000u
#define ICR_INIT 0x4500u
#define ICR_STARTUP 0x4600u

extern const uint8_t ap_begin[], ap_end[];
uint32_t ap_stack;
static uint8_t stacks[CPUS_MAX + 1][1024] __attribute__((aligned(16)));
static volatile uint32_t up = 1;

uint32_t cpu_id(void)
{
	return mmio_read(LAPIC_BASE + 0x20) >> 24;
}

/* On the new CPU. */
void guest_ap(void)
{
	uint32_t id = cpu_id();
	/* The boot CPU starts one at a time and waits, so nobody else prints. */
	print("cpu %u up\n", id);
	up++;
	cpu_main(id);
}

uint32_t cpus_start(uint32_t cpus)
{
	if (cpus > CPUS_MAX)
		fail("cpus", cpus);
	memcpy((void *)(uintptr_t)TRAMPOLINE, ap_begin, (size_t)(ap_end - ap_begin));
	for (uint32_t id = 1; id < cpus; id++) {
		ap_stack = (uint32_t)(uintptr_t)stacks[id + 1];
		apic_send_ipi(id, ICR_INIT);
		/* Twice, as the protocol says; a CPU that runs already takes no notice of the second. */
		apic_send_ipi(id, ICR_STARTUP | TRAMPOLINE >> 12);
		for (uint32_t i = 0; i < 20000 && up == id; i++)
			__asm__ volatile("pause" : : : "memory");
		if (up == id)
			apic_send_ipi(id, ICR_STARTUP | TRAMPOLINE >> 12);
		for (uint32_t i = 0; i < 20000000 && up == id; i++)
			__asm__ volatile("pause" : : : "memory");
		if (up == id)
			fail("this CPU does not come up", id);
	}
	return up;
}
