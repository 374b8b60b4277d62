#include "link.h"

#define BUFFERS QUEUE_SIZE
/* 1526 bytes are what a device without mergeable buffers may fill (5.1.6.3.1). */
#define BUFFER_SIZE 1536u
#define HEADER_SIZE ((uint32_t)sizeof(struct net_header))
/* The timer counts down once a ns. */
#define PERIOD (1000000000u / TICKS_PER_SECOND)
#define LAPIC_TIMER_NOW 0x390u

enum { VECTOR_TICK, VECTOR_FRAME, VECTOR_POWER };

static struct virtio receiver, sender;
static uint8_t received[BUFFERS][BUFFER_SIZE] __attribute__((aligned(16)));
static uint8_t sent[BUFFERS][BUFFER_SIZE] __attribute__((aligned(16)));
static uint32_t current;       /* buffer of the frame that link_receive gave */
static uint32_t in_flight;     /* a bit for each buffer that the device has */
static uint32_t building;      /* the buffer that link_buffer gave, until it is sent */
static int chosen;

uint8_t link_mac[6];
volatile uint32_t ticks;
static volatile uint32_t pressed;
static int timer_runs;

static void on_tick(void)
{
	ticks++;
}

static void on_frame(void)
{
	mmio_write(receiver.base + INTERRUPT_ACK, mmio_read(receiver.base + INTERRUPT_STATUS));
}

static void on_power(void)
{
	pressed |= inb(GED_SELECT_PORT) & GED_POWER_BUTTON;
}

static void events_up(void)
{
	apic_init();
	on_vector(VECTOR_TICK, on_tick);
	on_vector(VECTOR_FRAME, on_frame);
	on_vector(VECTOR_POWER, on_power);
	ioapic_route_edge(receiver.gsi, VECTOR_FRAME);
	ioapic_route_edge(GED_GSI, VECTOR_POWER);
	apic_timer_periodic(VECTOR_TICK, PERIOD);
	timer_runs = 1;
}

static void give(uint32_t n)
{
	receiver.desc[n] = (struct descriptor){ (uintptr_t)received[n], BUFFER_SIZE, DESC_WRITE, 0 };
	virtio_submit(&receiver, (uint16_t)n);
}

void link_up(unsigned nth, uint32_t extra)
{
	int wrong;
	if (!virtio_find(&receiver, ID_NET, nth))
		fail("no such network interface", nth);
	if ((wrong = virtio_negotiate(&receiver, NET_F_MAC | NET_F_GUEST_CSUM | extra)))
		fail("the interface does not start", (uint32_t)wrong);
	if (!(receiver.features & NET_F_MAC))
		fail("the interface tells no MAC", receiver.features);
	for (uint32_t i = 0; i < sizeof link_mac; i++)
		link_mac[i] = *(volatile uint8_t *)(uintptr_t)(receiver.base + CONFIG + i);
	in_flight = 0;
	chosen = 0;
	memcpy(&sender, &receiver, sizeof sender);
	sender.queue = 1;
	if ((wrong = virtio_add_queue(&receiver)) || (wrong = virtio_add_queue(&sender)))
		fail("a queue does not start", (uint32_t)wrong);
	/* What was sent is noticed when a buffer is needed. */
	sender.avail.flags = AVAIL_NO_INTERRUPT;
	events_up();
	virtio_go(&receiver);
	for (uint32_t n = 0; n < BUFFERS; n++)
		give(n);
}

const uint8_t *link_receive(uint32_t *length, int *checked)
{
	uint32_t bytes;
	while (virtio_take(&receiver, &current, &bytes)) {
		if (current >= BUFFERS)
			fail("the device uses a buffer that it was not given", current);
		if (bytes > HEADER_SIZE && bytes <= BUFFER_SIZE) {
			const struct net_header *header = (const void *)received[current];
			*checked = header->flags & (NET_NEEDS_CSUM | NET_DATA_VALID);
			*length = bytes - HEADER_SIZE;
			return received[current] + HEADER_SIZE;
		}
		link_release();
	}
	return NULL;
}

void link_release(void)
{
	give(current);
}

static void reclaim(void)
{
	uint32_t id, bytes;
	while (virtio_take(&sender, &id, &bytes))
		in_flight &= ~(1u << id % BUFFERS);
}

/* Until the device has nothing of ours; 0 where it stopped before. */
static int wait_for_device(void)
{
	for (uint32_t i = 0; i < 2000000; i++) {
		reclaim();
		if (!in_flight)
			return 1;
		if (mmio_read(sender.base + STATUS) & STATUS_NEEDS_RESET)
			return 0;
	}
	fail("the device sends nothing any more", in_flight);
}

/* A free buffer's number, after the device had its time. */
static uint32_t free_buffer(void)
{
	/* A read of a register leaves the guest, which gives the host's other threads their turn. */
	for (uint32_t i = 0; i < 2000000; i++) {
		reclaim();
		for (uint32_t n = 0; n < BUFFERS; n++)
			if (!(in_flight & 1u << n))
				return n;
		if (mmio_read(sender.base + STATUS) & STATUS_NEEDS_RESET)
			break;
	}
	fail("the device sends nothing any more", mmio_read(sender.base + STATUS));
}

uint8_t *link_buffer(void)
{
	if (!chosen)
		building = free_buffer();
	chosen = 1;
	return sent[building] + HEADER_SIZE;
}

void link_send(uint32_t length)
{
	memset(sent[building], 0, HEADER_SIZE);
	sender.desc[building] = (struct descriptor){ (uintptr_t)sent[building], HEADER_SIZE + length, 0, 0 };
	in_flight |= 1u << building;
	chosen = 0;
	virtio_submit(&sender, (uint16_t)building);
}

int link_send_raw(const struct net_header *header, uint32_t header_length, const void *frame, uint32_t length)
{
	/* All is back before and after, so that every descriptor is free. */
	wait_for_device();
	sender.desc[0] = (struct descriptor){ (uintptr_t)header, header_length, (uint16_t)(length ? DESC_NEXT : 0), 1 };
	sender.desc[1] = (struct descriptor){ (uintptr_t)frame, length, 0, 0 };
	in_flight = 1;
	virtio_submit(&sender, 0);
	return wait_for_device();
}

uint32_t chance(void)
{
	static uint32_t state;
	state ^= mmio_read(LAPIC_BASE + LAPIC_TIMER_NOW) ^ (uint32_t)link_mac[3] << 16 ^ (uint32_t)link_mac[4] << 8 ^ link_mac[5];
	return random32(&state);
}

void wait_for_event(int timed)
{
	if (timed != timer_runs)
		apic_timer_periodic(VECTOR_TICK, timed ? PERIOD : 0);
	timer_runs = timed;
	if (receiver.used.index == receiver.seen)
		sleep_until_irq();
	else
		/* Whoever floods us stops neither the clock nor the button. */
		__asm__ volatile("sti; nop; cli" : : : "memory");
	if (pressed) {
		print("power button\n");
		power_off();
	}
}
