/* Writes `kib=` KiB (1024 without it) of numbered lines to the serial port as fast as the port takes them, then a
 * marker, and powers off. 64 bytes a line, so that a reader can tell what it lost.
 */
#include "rt/rt.h"

#define LINE 64

void guest_main(void)
{
	static char line[LINE];
	uint32_t lines = option("kib", 1024) * (1024 / LINE);
	print("flood up\n");
	memset(line, '.', LINE);
	memcpy(line, "line ", 5);
	line[LINE - 1] = '\n';
	for (uint32_t n = 0; n < lines; n++) {
		uint32_t value = n;
		for (int i = 12; i > 4; i--, value /= 10)
			line[i] = (char)('0' + value % 10);
		const char *from = line;
		uint32_t count = LINE;
		__asm__ volatile("rep outsb" : "+S"(from), "+c"(count) : "d"(COM1) : "memory");
	}
	print("FLOOD-END %u lines\n", lines);
}
