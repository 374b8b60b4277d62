/* Finding ACPI tables from the start info's RSDP (ACPI 6.5, 5.2.5 to 5.2.9). */
#include "rt.h"

static uint32_t load32(const uint8_t *at)
{
	uint32_t value;
	memcpy(&value, at, sizeof value);
	return value;
}

const uint8_t *acpi_table(const char *signature)
{
	if (!start_info || !start_info->rsdp)
		return NULL;
	const uint8_t *rsdp = (const uint8_t *)(uintptr_t)start_info->rsdp;
	if (memcmp(rsdp, "RSD PTR ", 8))
		return NULL;
	/* Revision 2 and up have an XSDT with 64-bit pointers. */
	int wide = rsdp[15] >= 2;
	const uint8_t *root = (const uint8_t *)(uintptr_t)load32(rsdp + (wide ? 24 : 16));
	uint32_t length = load32(root + 4), step = wide ? 8 : 4;
	for (uint32_t at = 36; at + step <= length; at += step) {
		const uint8_t *table = (const uint8_t *)(uintptr_t)load32(root + at);
		if (!memcmp(table, signature, 4))
			return table;
	}
	return NULL;
}
