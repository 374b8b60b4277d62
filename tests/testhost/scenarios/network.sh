# shellcheck shell=dash
# limit: 300
# A stock Debian guest on netd's networks, on the oldest kernel: its own driver and DHCP client, TCP and full packets both
# ways, NAT, forwards, and what it cannot reach.
set -eu
. /opt/vmsup/scenarios/lib.sh
. /opt/vmsup/scenarios/lib-net.sh

# Each check has a line of its own, and the rest is tried as well: one run shows all that is wrong.
failed=
pass() { echo "PASS: $*"; }
wrong() {
	echo "FAIL: $*"
	failed=yes
}
# check WHAT COMMAND…
check() {
	what=$1 status=0
	shift
	got=$("$@" 2>&1) || status=$?
	if [ $status = 0 ]; then pass "$what"; else wrong "$what: '$*' has status $status and said '$got'"; fi
}
# check_not WHAT COMMAND…: it fails or is ended by `timeout` (143), and not because it could not be tried (others from 125).
check_not() {
	what=$1 status=0
	shift
	got=$("$@" 2>&1) || status=$?
	case $status in
	143 | [1-9] | [1-9][0-9] | 1[01][0-9] | 12[0-4]) pass "$what" ;;
	*) wrong "$what: '$*' has status $status and said '$got'" ;;
	esac
}
# check_text WHAT TEXT COMMAND…: the output contains the text.
check_text() {
	what=$1 wanted=$2
	shift 2
	got=$("$@" 2>&1) || true
	case $got in
	*"$wanted"*) pass "$what" ;;
	*) wrong "$what: '$*' did not say '$wanted' but '$got'" ;;
	esac
}

said() { as_vm "vmsup logs web1" | tr -d '\r' | grep "$1"; }
up_or_ended() { said VMSUP-GUEST-BUTTON || ! as_vm "vmsup ls" | grep -q "^web1 .*running"; }

step "rules, netd"
host_with_networks
netd=$(pids_of vmsup-netd)
check_text "netd's uid is its own" "$(printf '998\t998\t998\t998')" status_of "$netd" Uid
for set in CapEff CapPrm; do
	check_text "netd's $set is CAP_NET_ADMIN alone" 0000000000001000 status_of "$netd" $set
done
check_text "netd's system calls are filtered" 2 status_of "$netd" Seccomp
serve_with_cgroup
as_vm "mkdir ~/web && cp /opt/vmsup/linux/* ~/web && chmod u+w ~/web/*"
cat >/home/vm/web/vm.json <<'END'
{
  "name": "web1", "cpus": 2, "memory_mib": 256,
  "boot": { "kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0 panic=-1 quiet" },
  "disks": [ { "path": "root.img" } ],
  "nets": [
    { "network": "default", "queues": 2, "forwards": [ { "host": 8080, "guest": 80 } ] },
    { "network": "small" }
  ]
}
END
before=$(footprint)
net_before=$(net_footprint)

step "vmsup net ls"
check_text "doctor finds netd" "answers on $netd_socket" as_vm "vmsup doctor"
# From the line of netd on; what stands before is not about networks.
nothing_wrong() { ! as_vm "vmsup doctor" | sed -n '/ netd  /,$p' | grep -vE '^ok |^$|^VMs can be started'; }
check "and nothing wrong with the networks of this host" nothing_wrong
as_vm "vmsup net ls"
check_text "vmsup net ls names the network" default as_vm "vmsup net ls"

step "a stock guest, and its DHCP client"
as_vm "vmsup start ~/web/vm.json" || fail "it does not start: $(tail -3 /tmp/netd)"
wait_for 150 up_or_ended || true
said VMSUP-GUEST-BUTTON >/dev/null || { as_vm "vmsup logs web1; vmsup ls" | tail -30; fail "no marker"; }
# A network guest that is built in, to be its neighbour.
echo '{ "name": "next", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "net" }, "nets": [ { "network": "default" } ] }' \
	>/home/vm/next.json
as_vm "vmsup start ~/next.json" || fail "the second does not start: $(tail -3 /tmp/netd)"
said VMSUP-GUEST-NET || true
as_vm "vmsup net leases"
# address_of VM NETWORK, port_of VM NETWORK: as the supervisor says.
lease_of() { as_vm "vmsup net leases --json" | tr -d ' \n' | tr '{' '\n' | grep "\"network\":\"$2\"" | grep "\"vm\":\"$1\"" | json "$3"; }
address=$(lease_of web1 default address)
small=$(lease_of web1 small address)
next=$(lease_of next default address)
port=$(lease_of web1 default interface)
in_jail "$(as_vm "vmsup inspect web1 --json" | json pid)"

attach web1
check_text "address and prefix are the lease's" "inet $address/24 " guest "ip addr show dev eth0"
check_text "the second interface's, too" "inet $small/24 " guest "ip addr show dev eth1"
check_text "the route is the host's" "default via 10.77.0.1 dev eth0" guest "ip route"
check_text "DNS servers" "$(printf 'nameserver 192.0.2.2\nnameserver 192.0.2.3')" guest "cat /etc/resolv.conf"
check_text "MTU" 1500 guest "cat /sys/class/net/eth0/mtu"
check_text "MTU, where it is another" 1400 guest "cat /sys/class/net/eth1/mtu"
check_text "host name" web1 guest hostname
# shellcheck disable=SC2016
check_text "as many queues as asked for" "rx-0 rx-1 tx-0 tx-1" guest 'echo $(ls /sys/class/net/eth0/queues)'
# shellcheck disable=SC2016
check_text "one where nothing was asked" "rx-0 tx-0" guest 'echo $(ls /sys/class/net/eth1/queues)'
renewed() { said "VMSUP-GUEST-NET renew eth0 address=$address/24"; }
# shellcheck disable=SC2016
guest 'kill -USR1 $(cat /tmp/eth0.pid)' >/dev/null
check "the client can renew its lease" wait_for 20 renewed

step "host and guest"
guest 'mkdir -p /tmp/www && echo "the guest" >/tmp/www/index.html && httpd -h /tmp/www && iperf3 -s -D' >/dev/null
check "host to guest: packets of 1500 bytes, in one piece" ping -q -c 3 -i 0.2 -W 5 -M "do" -s 1472 "$address"
check_text "host to guest: TCP" "the guest" timeout 10 wget -q -O - "http://$address/"
check "host to neighbour" ping -q -c 1 -W 5 "$next"

step "guest and outside"
check "guest to outside: packets of 1500 bytes, in one piece" guest "/usr/bin/ping -q -c 3 -i 0.2 -W 5 -M do -s 1472 192.0.2.2"
check_not "and none that are larger" guest "/usr/bin/ping -q -c 1 -W 2 -M do -s 1473 192.0.2.2"
check_text "guest to outside: TCP" outside guest "timeout 10 wget -q -O - http://192.0.2.2/"
check_text "outside sees the host's address" 192.0.2.1 guest "timeout 10 wget -q -O - http://192.0.2.2/cgi-bin/who"
check_text "where there is no NAT it sees the guest's" "$small" \
	guest "ip route add 192.0.2.3 via 10.78.0.1 dev eth1; timeout 10 wget -q -O - http://192.0.2.3/cgi-bin/who"
check_text "outside to guest, by a forward" "the guest" outside timeout 10 wget -q -O - http://192.0.2.1:8080/
sum=$(sha256sum </tmp/outside/random | cut -d' ' -f1)
check_text "4 MiB arrive in the guest as they were sent" "$sum" guest "timeout 30 wget -q -O - http://192.0.2.2/random | tee /tmp/random | sha256sum"
guest "mv /tmp/random /tmp/www/" >/dev/null
check_text "and outside as the guest sends them" "$sum" \
	outside sh -c "timeout 30 wget -q -O - http://192.0.2.1:8080/random | sha256sum"

step "iperf3"
# rate WHAT COMMAND…: runs iperf3, which prints the rate that the receiver saw.
rate() {
	what=$1
	shift
	if got=$("$@" 2>&1); then
		echo "figure: iperf3, $what: $(echo "$got" | grep -a receiver | tail -1 | grep -oE '[0-9.]+ Mbits/sec')"
		pass "iperf3, $what"
	else
		wrong "iperf3, $what: $(echo "$got" | tail -3)"
	fi
}
rate "guest to outside, TCP" guest "timeout 30 iperf3 -f m -t 3 -c 192.0.2.2"
rate "outside to guest, TCP" guest "timeout 30 iperf3 -f m -t 3 -R -c 192.0.2.2"
rate "guest to outside, two streams" guest "timeout 30 iperf3 -f m -t 3 -P 2 -c 192.0.2.2"
rate "host to guest, TCP" timeout 30 iperf3 -f m -t 3 -c "$address"
rate "guest to outside, UDP" guest "timeout 30 iperf3 -f m -t 2 -u -b 5M -c 192.0.2.2"

step "what it cannot reach"
# The guest's table of neighbours may hold on to what it was just told for a moment.
reaches_outside() {
	wait_for 30 guest "/usr/bin/ping -q -c 1 -W 3 192.0.2.2" || guest "/usr/bin/ping -c 1 -W 3 192.0.2.2; ip neigh; ip addr show dev eth0; ip route"
}
refused() { guest "timeout 3 wget -q -O - http://$1/"; }
check "others reach the host's own server" outside timeout 5 wget -q -O - http://192.0.2.1:8081/
check_not "the guest does not, by the bridge's address" refused 10.77.0.1:8081
check_not "nor by another" refused 192.0.2.1:8081
check "the host reaches a metadata service" timeout 5 wget -q -O - http://169.254.169.254/
check_not "the guest does not" refused 169.254.169.254
check_not "nor its neighbour" guest "/usr/bin/ping -q -c 1 -W 2 $next"
check_not "outside does not reach it by its address behind NAT" \
	outside sh -c "ip route add 10.77.0.0/24 via 192.0.2.1; timeout 3 wget -q -O - http://$address/; status=\$?; ip route del 10.77.0.0/24; exit \$status"
check_not "an address that is not its own takes it nowhere" \
	guest "ip addr add 10.77.0.99/24 dev eth0; /usr/bin/ping -q -c 2 -W 2 -I 10.77.0.99 192.0.2.2; status=\$?; ip addr del 10.77.0.99/24 dev eth0; exit \$status"
check "its own still does" reaches_outside
check_not "a MAC that is not its own takes it nowhere" \
	guest "cp /sys/class/net/eth0/address /tmp/mac; ip link set eth0 address 02:76:6d:11:22:33; /usr/bin/ping -q -c 2 -W 2 192.0.2.2; status=\$?; ip link set eth0 address \$(cat /tmp/mac); exit \$status"
check "its own still does" reaches_outside
counted() { [ "$(nft list counter bridge vmsup "$1" | sed -n 's/.*packets \([0-9]*\).*/\1/p')" -gt 0 ]; }
# Where the guest asks for the way anew, it is the question that is forged.
forgery_counted() { counted drop_ip_source || counted drop_arp_sender; }
check "what it sent as another is counted" forgery_counted
# Nothing after this means anything where the VM has ended.
ended() { ! as_vm "vmsup ls" | grep web1 | grep -q running; }
if ended; then fail "the VM has ended: $(as_vm "vmsup inspect web1 --json" | json reason)"; fi
check "as are a stock guest's attempts at IPv6" counted drop_ipv6
as_vm "vmsup net stats web1"
answered() { [ "$(as_vm "vmsup net stats --json web1" | tr -d ' \n' | tr '{' '\n' | grep '"network":"default"' | json dhcp_answers)" -ge 3 ]; }
check "the worker answered its DHCP client: discover, request, renewal" answered
cat >/home/vm/greedy.json <<'END'
{ "name": "greedy", "cpus": 1, "memory_mib": 32, "boot": { "builtin": "net" },
  "nets": [ { "network": "default", "forwards": [ { "host": 22, "guest": 22 } ] } ] }
END
check_not "a port that root did not allow is refused" as_vm "vmsup start ~/greedy.json"
as_vm "vmsup rm greedy" 2>/dev/null || true

step "netd is killed, and comes back"
kill -9 "$netd"
wait "$netd" 2>/dev/null || true
check "the guest's network works without it" guest "/usr/bin/ping -q -c 2 -W 5 192.0.2.2"
check_text "the forward as well" "the guest" outside timeout 10 wget -q -O - http://192.0.2.1:8080/
vmsup-netd 2>/tmp/netd &
wait_for 20 grep -q "serving $netd_socket" /tmp/netd || fail "netd does not come back: $(cat /tmp/netd)"
netd=$(pids_of vmsup-netd)
check_text "it knows the lease" "$address" as_vm "vmsup net leases"
check_text "and the guest's network still works" outside guest "timeout 10 wget -q -O - http://192.0.2.2/"

step "nothing is left of a VM"
# The two warm TAPs stay, not these.
gone() { ! ip link show "$port" && [ "$(net_footprint)" = "$net_before" ]; }
as_vm "vmsup kill next && vmsup rm next"
echo "sync; reboot -f" >&3
check "the guest reboots, which ends it" wait_for 40 ended
exec 3>&-
check "its interfaces, leases and forwards are gone" wait_for 20 gone
check_not "nothing answers at its forward" outside timeout 3 wget -q -O - http://192.0.2.1:8080/
as_vm "vmsup rm web1"
as_vm "vmsup start ~/web/vm.json"
port=$(lease_of web1 default interface)
check "it starts again" ip link show "$port"
as_vm "vmsup kill web1 && vmsup rm web1"
check "a VM that is killed leaves nothing either" wait_for 20 gone
nothing_left "$before"
check "netd is there all the time" kill -0 "$netd"
cat /tmp/netd
[ -z "$failed" ]
