/* Writes a pattern to every page of RAM that the start info names, then reads all of it back. Memory above 4 GiB is
 * seen through a window of 2 MiB; memory below 1 MiB, where the loader's tables may be, is put back at once.
 */
#include "rt/rt.h"

#define PAGE 4096u
#define LARGE 0x200000u
#define RAM 1
#define ENTRIES 16
/* An address that no RAM and no device has: inside the gap below 4 GiB. */
#define WINDOW 0xe0000000u
#define PRESENT_WRITE_LARGE 0x83u

extern uint8_t _end[];
static struct memmap_entry map[ENTRIES];
static uint64_t directories[4][512] __attribute__((aligned(4096)));
static uint64_t pointers[512] __attribute__((aligned(4096)));
static uint64_t top[512] __attribute__((aligned(4096)));

/* Long mode, but this code stays what it is: 32-bit code of the compatibility sub-mode, with page tables that reach all
 * physical memory. (Not every KVM can do PAE paging without long mode.) There is no 64-bit IDT: no exception from here on.
 */
static void paging_on(void)
{
	for (uint32_t i = 0; i < 2048; i++)
		directories[i / 512][i % 512] = (uint64_t)i * LARGE | PRESENT_WRITE_LARGE;
	for (int i = 0; i < 4; i++)
		pointers[i] = (uintptr_t)directories[i] | 3;
	top[0] = (uintptr_t)pointers | 3;
	__asm__ volatile("mov %%cr4, %%eax; or $0x20, %%eax; mov %%eax, %%cr4;" /* PAE */
			 "mov %0, %%cr3;"
			 "mov $0xc0000080, %%ecx; rdmsr; or $0x100, %%eax; wrmsr;" /* EFER.LME */
			 "mov %%cr0, %%eax; or $0x80000001, %%eax; mov %%eax, %%cr0"
			 : : "b"(top) : "eax", "ecx", "edx", "memory");
}

/* Where this physical address can be reached. */
static volatile uint32_t *reach(uint64_t physical)
{
	static uint64_t shown;
	if (physical < 1ull << 32)
		return (volatile uint32_t *)(uintptr_t)physical;
	uint64_t large = physical & ~(uint64_t)(LARGE - 1);
	if (large != shown) {
		shown = large;
		directories[WINDOW >> 30][WINDOW >> 21 & 511] = large | PRESENT_WRITE_LARGE;
		__asm__ volatile("invlpg (%0)" : : "r"(WINDOW) : "memory");
	}
	return (volatile uint32_t *)(uintptr_t)(WINDOW + (uint32_t)(physical - large));
}

static uint32_t pattern(uint64_t physical)
{
	return (uint32_t)(physical >> 12) * 2654435761u ^ 0xa5a5a5a5u;
}

static int ours(uint64_t physical)
{
	return physical >= 0x1000000 && physical < (uintptr_t)_end;
}

static uint32_t pass(const struct memmap_entry *part, int verify)
{
	uint32_t pages = 0;
	for (uint64_t at = part->addr; at + PAGE <= part->addr + part->size; at += PAGE, pages++) {
		if (ours(at))
			continue;
		volatile uint32_t *word = reach(at);
		if (at < 0x100000) {
			uint32_t before = *word;
			*word = pattern(at);
			if (*word != pattern(at))
				fail("RAM does not keep what is written at MiB", 0);
			*word = before;
		} else if (!verify) {
			*word = pattern(at);
		} else if (*word != pattern(at)) {
			fail("RAM lost what was written at MiB", (uint32_t)(at >> 20));
		}
	}
	return pages;
}

void guest_main(void)
{
	uint32_t entries, kib = 0, pages = 0, high = 0;
	if (!start_info || start_info->version < 1 || !start_info->memmap)
		fail("no memory map in the start info", 0);
	entries = start_info->memmap_entries;
	if (entries > ENTRIES)
		fail("memory map entries", entries);
	memcpy(map, (const void *)(uintptr_t)start_info->memmap, entries * sizeof map[0]);
	for (uint32_t i = 0; i < entries; i++) {
		if (map[i].type != RAM)
			continue;
		kib += (uint32_t)(map[i].size >> 10);
		high |= map[i].addr >= 1ull << 32;
	}
	print("RAM %u KiB in %u entries\n", kib, entries);
	if (high)
		paging_on();
	for (uint32_t i = 0; i < entries; i++)
		if (map[i].type == RAM)
			pages += pass(&map[i], 0);
	for (uint32_t i = 0; i < entries; i++)
		if (map[i].type == RAM)
			pass(&map[i], 1);
	print("WALK PASS: %u MiB\n", pages >> 8);
}
