/* COM1, polled. */
#include "rt.h"

#define LSR (COM1 + 5)
#define LSR_THRE 0x20

void put(char c)
{
	/* Bounded: a port that never gets ready must not hold up a guest that tests something else. */
	for (int i = 0; i < 1000 && !(inb(LSR) & LSR_THRE); i++)
		;
	outb(COM1, (uint8_t)c);
}

static void put_number(uint32_t value, uint32_t base)
{
	char digits[10];
	int n = 0;
	do {
		digits[n++] = "0123456789abcdef"[value % base];
		value /= base;
	} while (value);
	while (n)
		put(digits[--n]);
}

void print(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	for (; *format; format++) {
		if (*format != '%') {
			put(*format);
			continue;
		}
		switch (*++format) {
		case 'u':
		case 'd':
			put_number(va_arg(args, uint32_t), 10);
			break;
		case 'x':
			put_number(va_arg(args, uint32_t), 16);
			break;
		case 'c':
			put((char)va_arg(args, int));
			break;
		case 's':
			for (const char *s = va_arg(args, const char *); *s; s++)
				put(*s);
			break;
		default:
			put(*format);
		}
	}
	va_end(args);
}
