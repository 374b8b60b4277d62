# shellcheck shell=dash
# limit: 180
# Limits are held by the VM's own cgroup: each has its value, one VM over its memory is killed alone, and where nothing
# can hold them a VM with limits is refused.
set -eu
. /opt/vmsup/scenarios/lib.sh

# vm NAME KERNEL MEMORY LIMITS
vm() {
	cat >"/home/vm/$1.json" <<END
{ "name": "$1", "cpus": 1, "memory_mib": $3, "boot": { "kernel": "$guests/$2.elf" }, "limits": { $4 } }
END
}
vm quiet deaf 32 '"memory_max_mib": 64, "pids_max": 24, "cpu_percent": 50'
vm greedy walker 48 '"memory_max_mib": 48'
vm lenient deaf 32 '"memory_max_mib": 64, "enforce": "best-effort"'

serve_with_cgroup
before=$(footprint)

step "every limit has its value"
as_vm "vmsup start ~/quiet.json"
pid=$(as_vm "vmsup ls --json" | json pid)
cgroup=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
echo "$cgroup: memory.max $(cat "$cgroup/memory.max"), pids.max $(cat "$cgroup/pids.max"), cpu.max $(cat "$cgroup/cpu.max")"
[ "$(cat "$cgroup/memory.max")" = $((64 << 20)) ] || fail memory.max
[ "$(cat "$cgroup/pids.max")" = 24 ] || fail pids.max
[ "$(cat "$cgroup/cpu.max")" = "50000 100000" ] || fail cpu.max

step "a VM over its memory.max is killed, and it alone"
status=0
as_vm "vmsup run ~/greedy.json" >/tmp/greedy 2>&1 || status=$?
cat /tmp/greedy
[ $status = 1 ] || fail "exit status $status"
if grep -q "WALK PASS" /tmp/greedy; then fail "it walked all of its memory, beyond its limit"; fi
grep -qi memory /tmp/greedy || fail "the reason does not speak of memory"
[ -d "/proc/$pid" ] || fail "the other VM died, too"
expect running as_vm "vmsup ls"
as_vm "vmsup kill quiet && vmsup rm quiet && vmsup rm greedy"
nothing_left "$before"

step "the host's clock jumps"
as_vm "vmsup start ~/quiet.json"
pid=$(as_vm "vmsup ls --json" | json pid)
jump() { date -s "@$(($(date +%s) + $1 * 86400))" >/dev/null; }
for days in 400 -800 400; do
	jump $days
	expect running as_vm "vmsup ls"
	# Whoever comes next believes the same of it.
	kill -9 "$(pids_of vmsup)"
	serve --jailer "$lib/jailer-in-cgroup" --worker "$bin/vmsup-worker"
	expect running as_vm "vmsup ls"
	[ "$(as_vm "vmsup ls --json" | json pid)" = "$pid" ] || fail "after $days days: another process"
	as_vm "vmsup start ~/lenient.json"
	# Its guest ignores the button: a deadline is one second, not a year.
	jump $((-days))
	as_vm "vmsup stop --timeout 1 lenient" || fail "after $days days: it cannot be stopped"
	as_vm "vmsup rm lenient"
	jump "$days"
done
as_vm "vmsup events --json" | sed 's/.*"cursor":\([0-9]*\).*/\1/' >/tmp/cursors
[ "$(wc -l </tmp/cursors)" -gt 20 ] || fail "events: $(cat /tmp/cursors)"
sort -n -u /tmp/cursors | cmp - /tmp/cursors || fail "events are out of order"
as_vm "vmsup kill quiet && vmsup rm quiet"

gone() { [ -z "$(pids_of vmsup)$(pids_of vmsup-jailer)" ]; }
leave() {
	# shellcheck disable=SC2046
	kill $(pids_of vmsup)
	wait_for 20 gone || fail "supervisor or jailer did not leave: $(ps)"
}

step "with a cgroup that is named"
leave
serve_with_named_cgroup
as_vm "vmsup start ~/quiet.json"
pid=$(as_vm "vmsup ls --json" | json pid)
cgroup=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
case $cgroup in
"$vm_cgroup"/w*) ;;
*) fail "its cgroup is $cgroup" ;;
esac
[ "$(cat "$cgroup/memory.max")" = $((64 << 20)) ] || fail memory.max
as_vm "vmsup kill quiet && vmsup rm quiet"

step "without a delegated cgroup limits are refused"
leave
in_session=no
serve
status=0
as_vm "vmsup start ~/quiet.json" >/tmp/refused 2>&1 || status=$?
cat /tmp/refused
[ $status != 0 ] || fail "it was started without its limits"
grep -q 'best-effort' /tmp/refused || fail "the sentence does not say what to do"
[ "$(as_vm "vmsup ls --json" | tr -d ' \n')" = "[]" ] || fail "something was left: $(as_vm "vmsup ls")"

step "unless best effort is enough"
as_vm "vmsup start ~/lenient.json"
expect running as_vm "vmsup ls"
as_vm "vmsup kill lenient && vmsup rm lenient"
