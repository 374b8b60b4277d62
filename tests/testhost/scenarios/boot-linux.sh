# shellcheck shell=dash
# limit: 420
# The main job: a stock Debian kernel with an initrd and an ext4 disk, two CPUs, jailed, and switched off cleanly.
set -eu
. /opt/vmsup/scenarios/lib.sh

serve_with_cgroup
as_vm "mkdir ~/web && cp /opt/vmsup/linux/* ~/web && chmod u+w ~/web/*"
cat >/home/vm/web/vm.json <<'END'
{
  "name": "web1", "cpus": 2, "memory_mib": 256,
  "boot": { "kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0 panic=-1" },
  "disks": [ { "path": "root.img" } ],
  "limits": { "memory_max_mib": 384, "pids_max": 32, "cpu_percent": 200 }
}
END
before=$(footprint)
said() { as_vm "vmsup logs web1" | tr -d '\r' | grep "$1"; }
# The guest is up, or has ended, which need not be waited for.
up_or_ended() { said VMSUP-GUEST-BUTTON || ! as_vm "vmsup ls" | grep -q running; }
boots() {
	as_vm "vmsup start ~/web/vm.json"
	wait_for 150 up_or_ended || true
	said VMSUP-GUEST-BUTTON >/dev/null || { as_vm "vmsup logs web1; vmsup ls" | tail -30; fail "no marker"; }
}

step "vmsup start vm.json"
boots
said VMSUP-GUEST-UP
expect "cpus=2 disk=vda kernel=6.1." said VMSUP-GUEST-UP
expect "boots=1" said VMSUP-GUEST-UP
said VMSUP-GUEST-RNG >/dev/null || fail "no entropy device"

step "vmsup ls"
as_vm "vmsup ls"
expect running as_vm "vmsup ls"
pid=$(as_vm "vmsup ls --json" | json pid)
[ "$(cat "/proc/$pid/comm")" != vmsup ] || fail "the pid is the supervisor's"

step "the jail, from outside"
in_jail "$pid"
[ "$(cat "/proc/$pid/task"/*/comm | grep -c '^vcpu')" = 2 ] || fail "threads: $(cat "/proc/$pid/task"/*/comm)"
cgroup=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
case $cgroup in
"$vm_cgroup"/jail/w*) ;;
*) fail "its cgroup is $cgroup" ;;
esac
[ "$(cat "$cgroup/memory.max")" = $((384 << 20)) ] || fail "memory.max: $(cat "$cgroup/memory.max")"

step "vmsup inspect"
as_vm "vmsup inspect web1"
expect "$(status_of "$pid" Uid | cut -f1)" as_vm "vmsup inspect web1"

step "the console takes input"
# shellcheck disable=SC2016
(printf 'echo answer=$((6*7))\n'; sleep 3) | as_vm "timeout 20 vmsup console --no-history --detach-on-eof web1" >/tmp/console || true
wait_for 10 said answer=42 || fail "no answer on the console: $(cat /tmp/console)"

step "vmsup pause and resume: the guest stands still, and goes on where it was"
attach web1
first=$(guest "cut -d. -f1 /proc/uptime")
as_vm "vmsup pause web1"
expect paused as_vm "vmsup ls"
printf '%s\n' "echo 'la''te'-answer" >&3
# The processor time of all vCPUs, in ticks.
spent() { awk '{ sum += $14 + $15 } END { print sum }' /proc/"$pid"/task/*/stat; }
before_pause=$(spent)
as_vm "vmsup inspect web1" >/dev/null
[ "$(spent)" -le $((before_pause + 5)) ] || fail "its vCPUs run: $(spent) ticks, $before_pause before"
if grep -aq "^late-answer" /tmp/console; then fail "a paused guest answers"; fi
as_vm "vmsup resume web1"
answered() { grep -aq "^late-answer" /tmp/console; }
wait_for 20 answered || fail "it does not go on: $(tail -3 /tmp/console)"
second=$(guest "cut -d. -f1 /proc/uptime")
exec 3>&-
[ "$second" -ge "$first" ] || fail "its time went back: $second, after $first"

step "vmsup stop: the power button"
as_vm "vmsup stop --timeout 60 web1"
said VMSUP-GUEST-DOWN >/dev/null || fail "the guest did not see its power button: $(as_vm 'vmsup logs web1' | tail -5)"
expect '"shutdown"' as_vm "vmsup ls --json"
expect '"stopped"' as_vm "vmsup ls --json"
as_vm "vmsup rm web1"
nothing_left "$before"
[ ! -e "$cgroup" ] || nothing_left "$before"

step "again, from the same disk: what the guest wrote is there"
boots
expect "boots=2" said VMSUP-GUEST-UP

step "a guest that is to run always comes back, and is well when it is up"
as_vm "vmsup kill web1 && vmsup rm web1"
sed 's/"limits"/"restart": "always", "health": { "console": "VMSUP-GUEST-BUTTON" }, "limits"/' /home/vm/web/vm.json >/home/vm/web/always.json
as_vm "vmsup start ~/web/always.json"
well() { as_vm "vmsup ls" | grep -q " healthy"; }
wait_for 150 well || fail "it is not well: $(as_vm "vmsup ls; vmsup logs web1" | tail -5)"
expect "boots=3" said VMSUP-GUEST-UP
attach web1
echo "reboot -f" >&3
again() { said "boots=4" && well; }
wait_for 150 again || fail "it did not come back: $(as_vm "vmsup ls; vmsup events; vmsup logs web1" | tail -8)"
exec 3>&-
expect '"restarts": 1' as_vm "vmsup ls --json"
as_vm "vmsup kill web1 && vmsup rm web1"
nothing_left "$before"
boots

step "a guest that reboots has ended"
attach web1
echo "reboot -f" >&3
ended() { as_vm "vmsup ls" | grep -q "asked for a reset"; }
wait_for 30 ended || fail "it is still there: $(as_vm "vmsup ls"; tail -3 /tmp/console)"
exec 3>&-
as_vm "vmsup rm web1"
nothing_left "$before"
