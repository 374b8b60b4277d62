/* Exceptions end the guest with a line; interrupts go to the guest's handlers. */
#include "rt.h"

#define VECTORS 48

struct gate {
	uint16_t offset_low;
	uint16_t selector;
	uint16_t type;
	uint16_t offset_high;
} __attribute__((packed));

/* What start.S leaves on the stack: pushal, then vector, error code, EIP. */
struct frame {
	uint32_t edi, esi, ebp, esp, ebx, edx, ecx, eax;
	uint32_t vector, error, eip, cs, eflags;
};

extern const uint32_t stubs[VECTORS];
static struct gate idt[VECTORS];
static handler *handlers[VECTORS - 32];

/* Also for the CPUs that come up later. */
void traps_load(void)
{
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) pointer = { sizeof idt - 1, (uint32_t)(uintptr_t)idt };
	__asm__ volatile("lidt %0" : : "m"(pointer));
}

void traps_init(void)
{
	for (int i = 0; i < VECTORS; i++)
		idt[i] = (struct gate){ (uint16_t)stubs[i], 8, 0x8e00, (uint16_t)(stubs[i] >> 16) };
	traps_load();
}

void on_vector(unsigned n, handler *what)
{
	handlers[n] = what;
}

void guest_trap(const struct frame *frame)
{
	if (frame->vector >= 32 && handlers[frame->vector - 32]) {
		handlers[frame->vector - 32]();
		apic_eoi();
		return;
	}
	print("FAIL: vector %u, error 0x%x, at 0x%x\n", frame->vector, frame->error, frame->eip);
	power_off();
}
