/* Entry in C, the command line, and what a compiler expects to find. */
#include "rt.h"

const struct start_info *start_info;

/* cpus.c, under a guest with several CPUs, defines these for itself. */
uint32_t ap_stack __attribute__((weak));
void guest_ap(void) __attribute__((weak));
void guest_ap(void) { halt_for_ever(); }

void traps_init(void);

/* From start.S, on the boot stack. */
void guest_start(const struct start_info *info)
{
	if (info && info->magic == START_INFO_MAGIC)
		start_info = info;
	traps_init();
	power_init();
	guest_main();
	power_off();
}

static const char *command_line(void)
{
	return start_info && start_info->cmdline ? (const char *)(uintptr_t)start_info->cmdline : "";
}

const char *option_text(const char *name)
{
	const char *at = command_line();
	while (*at) {
		const char *key = name;
		while (*key && *at == *key)
			at++, key++;
		if (!*key && *at == '=')
			return at + 1;
		while (*at && *at != ' ')
			at++;
		while (*at == ' ')
			at++;
	}
	return NULL;
}

uint32_t option(const char *name, uint32_t otherwise)
{
	const char *at = option_text(name);
	uint32_t value = 0;
	if (!at)
		return otherwise;
	for (; *at >= '0' && *at <= '9'; at++)
		value = value * 10 + (uint32_t)(*at - '0');
	return value;
}

/* xorshift32 */
uint32_t random32(uint32_t *state)
{
	uint32_t x = *state ? *state : 0x9e3779b9u;
	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return *state = x;
}

void *memset(void *to, int byte, size_t size)
{
	void *at = to;
	__asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(byte) : "memory");
	return to;
}

void *memcpy(void *to, const void *from, size_t size)
{
	/* Words, then the rest: an emulated CPU takes as long for a byte as for a word. */
	void *at = to;
	size_t words = size / 4, rest = size % 4;
	__asm__ volatile("rep movsl" : "+D"(at), "+S"(from), "+c"(words) : : "memory");
	__asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(rest) : : "memory");
	return to;
}

int memcmp(const void *a, const void *b, size_t size)
{
	const uint8_t *x = a, *y = b;
	for (size_t i = 0; i < size; i++)
		if (x[i] != y[i])
			return x[i] < y[i] ? -1 : 1;
	return 0;
}
