/* What every guest has under it: the start info, the serial port, traps, and ways to end. */
#ifndef RT_H
#define RT_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "platform.h"

/* The guest itself. */
void guest_main(void);

/* hvm_start_info (Xen, arch-x86/hvm/start_info.h), version 1. */
struct start_info {
	uint32_t magic;
	uint32_t version;
	uint32_t flags;
	uint32_t nr_modules;
	uint64_t modlist;
	uint64_t cmdline;
	uint64_t rsdp;
	uint64_t memmap;
	uint32_t memmap_entries;
	uint32_t reserved;
};
#define START_INFO_MAGIC 0x336ec578u

/* hvm_memmap_table_entry; type 1 is RAM. */
struct memmap_entry {
	uint64_t addr;
	uint64_t size;
	uint32_t type;
	uint32_t reserved;
};

/* NULL where the loader gave none. */
extern const struct start_info *start_info;

/* What stands behind `name=` on the command line, up to a space or the end; NULL where there is none. */
const char *option_text(const char *name);
/* Number behind `name=`, or what holds without it. */
uint32_t option(const char *name, uint32_t otherwise);

/* serial.c */
void put(char c);
/* %u %d %x %c %s %%, and nothing else. */
void print(const char *format, ...) __attribute__((format(printf, 1, 2)));
static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline uint8_t inb(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}
static inline void outw(uint16_t port, uint16_t value)
{
	__asm__ volatile("outw %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline uint16_t inw(uint16_t port)
{
	uint16_t value;
	__asm__ volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}
static inline void outl(uint16_t port, uint32_t value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}
static inline uint32_t inl(uint16_t port)
{
	uint32_t value;
	__asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}
static inline uint32_t mmio_read(uint32_t address)
{
	return *(volatile uint32_t *)(uintptr_t)address;
}
static inline void mmio_write(uint32_t address, uint32_t value)
{
	*(volatile uint32_t *)(uintptr_t)address = value;
}

/* trap.c: vector 32 + n calls handlers[n]; any other vector ends the guest with a line that says which. */
typedef void handler(void);
void on_vector(unsigned n, handler *what);
static inline void irqs_on(void)
{
	__asm__ volatile("sti" : : : "memory");
}
static inline void irqs_off(void)
{
	__asm__ volatile("cli" : : : "memory");
}
/* Sleeps until one interrupt was served. Interrupts are off before and after, so that none is missed between a
 * look at what it changes and the sleep. */
static inline void sleep_until_irq(void)
{
	__asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* apic.c: local APIC on, its timer, and the I/O APIC's pins. */
void apic_init(void);
void apic_eoi(void);
void apic_timer_periodic(unsigned n, uint32_t count);
void apic_send_ipi(uint32_t apic_id, uint32_t low);
void ioapic_route_edge(unsigned gsi, unsigned n);

/* off.c */
void power_init(void);
void power_off(void) __attribute__((noreturn));
void reset(void) __attribute__((noreturn));
void halt_for_ever(void) __attribute__((noreturn));
/* Prints FAIL and why, and powers off. */
void fail(const char *why, uint32_t value) __attribute__((noreturn));

/* acpi.c: a table by its signature, or NULL. */
const uint8_t *acpi_table(const char *signature);

void *memset(void *to, int byte, size_t size);
void *memcpy(void *to, const void *from, size_t size);
int memcmp(const void *a, const void *b, size_t size);

/* Deterministic: the same seed gives the same run. */
uint32_t random32(uint32_t *state);

#endif
