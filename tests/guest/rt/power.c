/* Ways to end: the FADT's sleep control register (ACPI 6.5, 4.8.3.7), the i8042's reset line, or a triple fault. */
#include "rt.h"

#define FADT_RESET_REG 116
#define FADT_SLEEP_CONTROL 244
#define SLEEP_S5 ((5 << 2) | (1 << 5))

/* Writes a byte to where a generic address structure points: system memory (0) or I/O port (1). */
static int write_gas(const uint8_t *gas, uint8_t value)
{
	uint32_t address;
	memcpy(&address, gas + 4, sizeof address);
	if (!address)
		return 0;
	if (gas[0] == 1)
		outb((uint16_t)address, value);
	else
		*(volatile uint8_t *)(uintptr_t)address = value;
	return 1;
}

void halt_for_ever(void)
{
	for (;;)
		__asm__ volatile("cli; hlt");
}

void power_off(void)
{
	const uint8_t *fadt = acpi_table("FACP");
	uint32_t length = 0;
	if (fadt)
		memcpy(&length, fadt + 4, sizeof length);
	if (length >= FADT_SLEEP_CONTROL + 12)
		write_gas(fadt + FADT_SLEEP_CONTROL, SLEEP_S5);
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
