/* Ways to end: the sleep control register that the FADT names (ACPI 6.5, 4.8.3.7), or the i8042's reset line. */
#include "rt.h"

#define FADT_SLEEP_CONTROL 244
#define SLEEP_S5 ((5 << 2) | (1 << 5))
/* Address space of a generic address structure (5.2.3.2). */
#define SPACE_IO 1

static uint8_t sleep_control[12];

/* Notes where the sleep control register is, before a guest overwrites the memory that the tables are in. */
void power_init(void)
{
	const uint8_t *fadt = acpi_table("FACP");
	uint32_t length = 0;
	if (fadt)
		memcpy(&length, fadt + 4, sizeof length);
	if (length >= FADT_SLEEP_CONTROL + sizeof sleep_control)
		memcpy(sleep_control, fadt + FADT_SLEEP_CONTROL, sizeof sleep_control);
}

void halt_for_ever(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

void power_off(void)
{
	uint32_t address;
	memcpy(&address, sleep_control + 4, sizeof address);
	if (address && sleep_control[0] == SPACE_IO)
		outb((uint16_t)address, SLEEP_S5);
	else if (address)
		*(volatile uint8_t *)(uintptr_t)address = SLEEP_S5;
	print("FAIL: no power off, resetting instead\n");
	reset();
}

void reset(void)
{
	outb(I8042_COMMAND, 0xfe);
	halt_for_ever();
}

void fail(const char *why, uint32_t value)
{
	print("FAIL: %s (0x%x)\n", why, value);
	power_off();
}
