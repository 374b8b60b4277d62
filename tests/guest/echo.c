/* Gives back what arrives on the serial port, until a `q`; then powers off. */
#include "rt/rt.h"

void guest_main(void)
{
	print("echo up\n");
	for (;;) {
		if (!(inb(COM1 + 5) & 1))
			continue;
		char c = (char)inb(COM1);
		if (c == 'q')
			break;
		put(c);
	}
	print("\necho down\n");
}
