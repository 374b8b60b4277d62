/* A guest with a network: takes an address by DHCP and says so, answers ARP and ping (of up to 1,500 bytes), and serves a page
 * on port 80. Where the command line has `fetch=A.B.C.D:PORT/PATH` it fetches that once, by HTTP/1.0, and prints
 *
 *	NET mac=02:76:6d:00:00:02 ip=10.77.0.2 gw=10.77.0.1 mtu=1500
 *	FETCHED 200 1234 bytes
 *	the first line of the body, as far as it is printable
 *
 * or `FETCH FAILED` and why. It sleeps whenever there is nothing to do, and ends at its power button. `nic=N` takes another
 * interface than the first one.
 */
#include "net/tcp.h"

#define LINE 76u
#define RESOLVE_TRIES 6u

/* How an answer is read: what the next byte belongs to. */
enum { STATUS_LINE, HEADER_LINE, LINE_START, FIRST_LINE, BODY };

static struct {
	int busy;
	uint32_t address, port, asked, tries;
	char request[512];
	uint32_t request_length;
	int part;
	uint32_t column, status, bytes, line_length;
	char line[LINE];
} fetch;

static void fetch_failed(const char *why)
{
	fetch.busy = 0;
	print("FETCH FAILED %s\n", why);
}

/* The bytes of an answer up to the end of the body's first line; returns how many those were. */
static uint32_t read_head(const uint8_t *data, uint32_t length)
{
	uint32_t at;
	for (at = 0; at < length && fetch.part != BODY; at++) {
		uint8_t c = data[at];
		if (fetch.part == FIRST_LINE) {
			if (c == '\n')
				fetch.part = BODY;
			else if (c != '\r' && fetch.line_length < LINE)
				fetch.line[fetch.line_length++] = c >= ' ' && c < 127 ? (char)c : '.';
			fetch.bytes++;
			continue;
		}
		if (c == '\n') {
			fetch.part = fetch.part == LINE_START ? FIRST_LINE : LINE_START;
			fetch.column = 0;
		} else if (c != '\r') {
			/* "HTTP/1.0 200 OK" */
			if (fetch.part == STATUS_LINE && fetch.column >= 9 && fetch.column < 12)
				fetch.status = fetch.status * 10 + (uint32_t)(c - '0');
			else if (fetch.part == LINE_START)
				fetch.part = HEADER_LINE;
			fetch.column++;
		}
	}
	return at;
}

static void fetch_receive(struct tcp *c, const uint8_t *data, uint32_t length)
{
	(void)c;
	uint32_t head = read_head(data, length);
	fetch.bytes += length - head;
}

static void fetch_closed(struct tcp *c, const char *why)
{
	if (!c->peer_closed && why) {
		fetch_failed(why);
	} else if (fetch.part < FIRST_LINE || fetch.status < 100 || fetch.status > 599) {
		fetch_failed("the answer is not HTTP");
	} else {
		fetch.busy = 0;
		print("FETCHED %u %u bytes\n", fetch.status, fetch.bytes);
		for (uint32_t i = 0; i < fetch.line_length; i++)
			put(fetch.line[i]);
		put('\n');
	}
}

static void append(const char *text)
{
	while (*text && *text != ' ' && fetch.request_length < sizeof fetch.request - 16)
		fetch.request[fetch.request_length++] = *text++;
}

static void fetch_begin(void)
{
	const char *at = option_text("fetch");
	if (!at)
		return;
	fetch.address = parse_address(&at);
	if (fetch.address && *at == ':')
		for (at++; *at >= '0' && *at <= '9' && fetch.port < 65536; at++)
			fetch.port = fetch.port * 10 + (uint32_t)(*at - '0');
	if (!fetch.address || !fetch.port || fetch.port > 65535 || (*at != '/' && *at != ' ' && *at)) {
		fetch_failed("fetch= is not ADDRESS:PORT/PATH");
		return;
	}
	append("GET");
	fetch.request[fetch.request_length++] = ' ';
	append(*at == '/' ? at : "/");
	memcpy(fetch.request + fetch.request_length, " HTTP/1.0\r\n\r\n", 13);
	fetch.request_length += 13;
	active.receive = fetch_receive;
	active.closed = fetch_closed;
	fetch.busy = 1;
}

/* Looks for the way, then connects. */
static void fetch_step(void)
{
	if (!fetch.busy || active.state)
		return;
	const uint8_t *mac = route(fetch.address);
	if (mac) {
		tcp_connect(mac, fetch.address, fetch.port, fetch.request, fetch.request_length);
	} else if (!fetch.tries || ticks - fetch.asked >= TICKS_PER_SECOND) {
		if (fetch.tries++ == RESOLVE_TRIES)
			fetch_failed("nobody answers ARP for the way there");
		else
			arp_ask(next_hop(fetch.address));
		fetch.asked = ticks;
	}
}

static const char page[] = "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 21\r\nConnection: close\r\n\r\n"
			   "HELLO FROM THE GUEST\n";
static uint32_t newlines; /* of the request's last bytes */

static void page_receive(struct tcp *c, const uint8_t *data, uint32_t length)
{
	/* An empty line ends a request; whatever it asks for, this is the page. */
	for (uint32_t i = 0; i < length && newlines < 2; i++)
		newlines = data[i] == '\n' ? newlines + 1 : data[i] == '\r' ? newlines : 0;
	if (newlines < 2 || c->closing)
		return;
	c->out = page;
	c->out_length = sizeof page - 1;
	c->closing = 1;
	c->said = 0;
}

static void page_closed(struct tcp *c, const char *why)
{
	newlines = 0;
	if (!why && c->out_length)
		print("SERVED a page\n");
}

void guest_main(void)
{
	network_up(0);
	passive.port = 80;
	passive.receive = page_receive;
	passive.closed = page_closed;
	fetch_begin();
	for (;;) {
		fetch_step();
		network_step(fetch.busy || tcp_busy());
	}
}
