# shellcheck shell=dash
# limit: 240
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

step "a guest that reboots has ended"
attach web1
echo "reboot -f" >&3
ended() { as_vm "vmsup ls" | grep -q "asked for a reset"; }
wait_for 30 ended || fail "it is still there: $(as_vm "vmsup ls"; tail -3 /tmp/console)"
exec 3>&-
as_vm "vmsup rm web1"
nothing_left "$before"
