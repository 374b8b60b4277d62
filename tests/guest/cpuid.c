/* Prints what CPUID tells: a line `cpuid LEAF EAX EBX ECX EDX`, hexadecimal, for some leaves. */
#include "rt/rt.h"

static void leaf(uint32_t function)
{
	uint32_t a, b, c, d;
	__asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(function), "c"(0));
	print("cpuid %x %x %x %x %x\n", function, a, b, c, d);
}

void guest_main(void)
{
	static const uint32_t leaves[] = { 0x0, 0x1, 0x7, 0x80000001, 0x8000000a };
	for (unsigned n = 0; n < sizeof leaves / sizeof leaves[0]; n++)
		leaf(leaves[n]);
}
