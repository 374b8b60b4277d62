/* Gives back what arrives on the serial port, until a `q`; then powers off. An EOT (0x04) makes it triple-fault. */
#include "rt/rt.h"

static void crash(void)
{
	static const uint16_t nothing[3];
	__asm__ volatile("lidt (%0); ud2" : : "r"(nothing) : "memory");
}

void guest_main(void)
{
	print("echo up\n");
	for (;;) {
		if (!(inb(COM1 + 5) & 1))
			continue;
		char c = (char)inb(COM1);
		if (c == 'q')
			break;
		if (c == 4)
			crash();
		put(c);
	}
	print("\necho down\n");
}
