/* One host on an Ethernet: ARP, IPv4, ICMP echo, and what UDP and TCP have in common. Addresses are numbers, 10.0.0.1 is
 * 0x0a000001; what stands in a frame is read and written by the byte. */
#ifndef IP_H
#define IP_H

#include "link.h"

enum { ETHERNET_SIZE = 14, IP_SIZE = 20, UDP_SIZE = 8, TRANSPORT = ETHERNET_SIZE + IP_SIZE };
enum { TYPE_IPV4 = 0x0800, TYPE_ARP = 0x0806, TYPE_VLAN = 0x8100, TYPE_IPV6 = 0x86dd };
enum { PROTOCOL_ICMP = 1, PROTOCOL_TCP = 6, PROTOCOL_UDP = 17 };
enum { ARP_REQUEST = 1, ARP_REPLY = 2, ARP_SIZE = 28 };

struct host {
	uint32_t address; /* 0 before DHCP has one */
	uint32_t mask;
	uint32_t gateway;
	uint32_t mtu;
};
extern struct host me;
extern const uint8_t everybody[6];

/* A datagram that came for us. */
struct datagram {
	const uint8_t *from_mac;
	uint32_t from, to;
	const uint8_t *data; /* behind IP's header */
	uint32_t length;
};

static inline uint32_t get16(const uint8_t *at)
{
	return (uint32_t)at[0] << 8 | at[1];
}
static inline uint32_t get32(const uint8_t *at)
{
	return get16(at) << 16 | get16(at + 2);
}
static inline void put16(uint8_t *at, uint32_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}
static inline void put32(uint8_t *at, uint32_t value)
{
	put16(at, value >> 16);
	put16(at + 2, value);
}

/* Adds up 16-bit words as they lie in memory (RFC 1071: the order of bytes does not matter), on top of `sum`. */
uint32_t add_up(const void *data, uint32_t length, uint32_t sum);
/* The checksum of what was added up, to be stored as it is; 0 over what has a right one in it. */
uint16_t checksum(uint32_t sum);
/* The sum of TCP's and UDP's pseudo header (RFC 9293, 3.1). */
uint32_t pseudo_header(uint32_t from, uint32_t to, uint32_t protocol, uint32_t length);

/* Builds Ethernet's header, and gives where the rest goes. */
uint8_t *put_ethernet(uint8_t *frame, const uint8_t *to, const uint8_t *from, uint32_t type);
uint8_t *put_arp(uint8_t *frame, const uint8_t *to, uint32_t what, const uint8_t *sender_mac, uint32_t sender,
		 const uint8_t *target_mac, uint32_t target);
/* IP's header for so many bytes behind it. */
void put_ip(uint8_t *at, uint32_t protocol, uint32_t from, uint32_t to, uint32_t length);
/* UDP's header before `length` bytes that are there already, checksum included. */
void put_udp(uint8_t *at, uint32_t from, uint32_t from_port, uint32_t to, uint32_t to_port, uint32_t length);

/* Sends so many bytes that are at link_buffer() + TRANSPORT. */
void ip_send(const uint8_t *to_mac, uint32_t protocol, uint32_t to, uint32_t length);
void arp_ask(uint32_t address);
/* The neighbour that a packet goes to first. */
uint32_t next_hop(uint32_t to);
/* That neighbour's MAC, or NULL until it answered (arp_ask). One is known at a time. */
const uint8_t *route(uint32_t to);
/* How many ARP replies came for what was asked. */
extern uint32_t arp_answers;

/* Handles all frames that came, then time, then sleeps; `timed` as in wait_for_event. */
void network_step(int timed);
/* Brings up the interface that the command line names, and asks DHCP until there is an address; `extra` as in link_up. */
void network_up(uint32_t extra);

/* dhcp.c; true where the datagram was DHCP's. */
int dhcp_input(const struct datagram *in, int checked);
/* Does what is due; nothing once there is an address. */
void dhcp_tick(void);

/* "02:76:6d:00:00:02" and "10.0.0.2". */
void print_mac(const uint8_t *mac);
void print_address(uint32_t address);
/* The address at *text, which moves behind it; 0 where there is none. */
uint32_t parse_address(const char **text);

#endif
