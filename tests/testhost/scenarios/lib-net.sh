# shellcheck shell=dash
# A host with networks, for scenarios: Debian's tools, a namespace "outside" with servers, netd and its rules. After lib.sh.
#
#   outside 192.0.2.2, 192.0.2.3 ──veth── 192.0.2.1 host 10.77.0.1 ── bridge vmsup0 ── vt<n> ── guest
#           169.254.169.254                              10.78.0.1 ── bridge vmsup1 ── vt<n> ── guest
#
# netd is a user of its own with one capability; the user vm may use both networks and forward some ports.

tools=/opt/vmsup/network
netd_toml=/etc/vmsup/netd.toml
netd_socket=/run/vmsup-netd/netd.sock

# busybox's shell prefers busybox's own programs, whatever PATH says, and those are simpler ones.
ip() { /usr/bin/ip "$@"; }
ping() { /usr/bin/ping "$@"; }
outside() { ip netns exec outside "$@"; }

# Kernel modules and programs that only networks need.
load_tools() {
	cp -a $tools/usr $tools/lib /
	PATH=/usr/bin:$PATH
	while read -r name; do
		grep -q "^$name " /proc/modules || insmod "$tools/modules/$name.ko" || fail "module $name"
	done <$tools/modules/order
	# As Debian's udev rules have it.
	chmod 666 /dev/net/tun
}

# Somewhere else, behind the host: it does not know the way to a network whose guests go out with the host's address.
make_outside() {
	ip netns add outside
	ip link add up0 type veth peer name eth0 netns outside
	ip addr add 192.0.2.1/24 dev up0
	ip link set up0 up
	outside ip link set lo up
	outside ip addr add 192.0.2.2/24 dev eth0
	outside ip addr add 192.0.2.3/24 dev eth0
	outside ip link set eth0 up
	outside ip route add 10.78.0.0/24 via 192.0.2.1
	echo 1 >/proc/sys/net/ipv4/ip_forward
	# Stands in for a cloud's metadata service.
	outside ip addr add 169.254.169.254/32 dev lo
	ip route add 169.254.169.254/32 via 192.0.2.2

	mkdir -p /tmp/outside/cgi-bin /tmp/host
	echo "outside" >/tmp/outside/index.html
	# shellcheck disable=SC2016
	printf '%s\n' '#!/bin/sh' 'printf "Content-Type: text/plain\r\n\r\n"' \
		'echo "$REMOTE_ADDR" | grep -oE "[0-9]+(\.[0-9]+){3}"' >/tmp/outside/cgi-bin/who
	chmod 755 /tmp/outside/cgi-bin/who
	head -c 4194304 /dev/urandom >/tmp/outside/random
	outside httpd -h /tmp/outside
	echo "the host's own" >/tmp/host/index.html
	httpd -p 8081 -h /tmp/host
	outside iperf3 -s -D
}

# What packaging does with tmpfiles, a unit for the rules and one for netd.
start_netd() {
	mkdir -p /etc/vmsup /run/vmsup-netd
	chown vmsup-netd:vmsup-netd /run/vmsup-netd
	chmod 755 /run/vmsup-netd
	[ -e $netd_toml ] || cat >$netd_toml <<END
[[network]]
name = "default"
bridge = "vmsup0"
subnet = "10.77.0.1/24"
dns = ["192.0.2.2", "192.0.2.3"]
users = ["vm"]
[[network.forward]]
users = [1000]
ports = ["8000-8080"]

[[network]]
name = "small"
bridge = "vmsup1"
subnet = "10.78.0.1/24"
nat = false
mtu = 1400
users = ["vm"]
pool = 0
END
	nft list table inet vmsup >/dev/null 2>&1 || nft -f /opt/vmsup/vmsup.nft || fail "the rules do not load"
	vmsup-netd --check || fail "netd refuses its configuration"
	vmsup-netd 2>/tmp/netd &
	wait_for 20 grep -q "serving $netd_socket" /tmp/netd || fail "netd does not serve: $(cat /tmp/netd)"
	wait_for 20 pool_of_taps_full || fail "the pool of TAPs does not fill: $(net_footprint)"
}
pool_of_taps_full() { [ "$(net_footprint)" = "interfaces 2, leases 2, forwards 0" ]; }

host_with_networks() {
	load_tools
	make_outside
	start_netd
}

ports() { ip -o link show | sed -n 's/^[0-9]*: \(vt[0-9]*\):.*/\1/p'; }
# What VMs with networks may leave behind, the two warm TAPs included.
net_footprint() {
	echo "interfaces $(ports | wc -l)," \
		"leases $(nft list set bridge vmsup leases | grep -o '"vt[0-9]*" \.' | wc -l)," \
		"forwards $(nft list map inet vmsup forwards | grep -oE '(tcp|udp|6|17) \. [0-9]+ : ' | wc -l)"
}
