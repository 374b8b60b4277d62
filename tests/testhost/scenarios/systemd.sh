# shellcheck shell=dash
# init: systemd
# limit: 300
# Under systemd 252, by the units as they are installed: a stock Debian guest and its limits outlive the supervisor, its
# jailer, both killed and both restarted; at the end nothing is left. Then the same units of a user's own.
set -eu
. /opt/vmsup/scenarios/lib.sh

unit_cgroup=/sys/fs/cgroup/vmsup.slice/vmsup-jailer.service
runtime=/run/vmsup
# The system user's, or that of the user vm with a service manager of their own.
as_vm() { su -s /bin/sh vmsup -c "export PATH=$PATH; cd; $*"; }
control() { systemctl "$@"; }
main_pid() { control show -P MainPID "$1"; }
state_of() { as_vm "vmsup ls" | grep "^web1 "; }
runs() { state_of | grep -q running; }
said() { as_vm "vmsup logs web1" | tr -d '\r' | grep "$1"; }
up_or_ended() { said VMSUP-GUEST-BUTTON || ! runs; }
another() { [ "$(main_pid "$1")" != "$2" ] && [ "$(main_pid "$1")" != 0 ]; }
pid_of_web1() { as_vm "vmsup ls --json" | json pid; }
gone() { ! [ -e "$1" ]; }
why_not() {
	control status --no-pager vmsup.service vmsup-jailer.service || true
	journalctl --no-pager -o cat -n 40
	fail "$*"
}

# The limits that its file asks for are those of the worker's own cgroup, below the jailer's unit.
in_its_limits() {
	leaf=/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")
	case $leaf in
	"$unit_cgroup"/w*) ;;
	*) return 1 ;;
	esac
	[ "$(cat "$leaf/memory.max")" = $((384 << 20)) ] && [ "$(cat "$leaf/pids.max")" = 32 ] &&
		[ "$(cat "$leaf/cpu.max")" = "150000 100000" ]
}
# The same process, the same guest, with limits, and one that answers.
still_there() {
	wait_for 30 runs || why_not "$1: it does not run: $(as_vm "vmsup ls" 2>&1)"
	[ "$(pid_of_web1)" = "$pid" ] || why_not "$1: another process: $(pid_of_web1), not $pid"
	wait_for 20 in_its_limits || why_not "$1: no limits: $(grep -H . "$leaf"/memory.max "$leaf"/pids.max "$leaf"/cpu.max 2>&1)"
	attach web1
	expect "$boot_id" guest "cat /proc/sys/kernel/random/boot_id"
	exec 3>&-
	echo "$1: pid $pid, boot id $boot_id, limits in $leaf"
}
# start_web1: a stock guest, up.
start_web1() {
	as_vm "mkdir -p ~/web && cp /opt/vmsup/linux/* ~/web && chmod u+w ~/web/*"
	as_vm "cat >~/web/vm.json" <<'END'
{
  "name": "web1", "cpus": 2, "memory_mib": 256,
  "boot": { "kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0 panic=-1 quiet" },
  "disks": [ { "path": "root.img" } ],
  "limits": { "memory_max_mib": 384, "pids_max": 32, "cpu_percent": 150 }
}
END
	as_vm "vmsup start ~/web/vm.json" || why_not "it does not start"
	wait_for 100 up_or_ended || true
	said VMSUP-GUEST-BUTTON >/dev/null || why_not "no marker: $(as_vm "vmsup logs web1; vmsup ls" | tail -5)"
	boot_id=$(said VMSUP-GUEST-UP | sed 's/.*boot_id=\([^ ]*\).*/\1/')
	pid=$(pid_of_web1)
}
# no_trace: of the VM, once it is removed: process, leaf, socket, handle, row. The warm pool's are no VM's.
no_trace() {
	as_vm "vmsup rm web1"
	wait_for 10 gone "/proc/$pid" || fail "its worker is there"
	wait_for 10 gone "$leaf" || [ "$(cat "$leaf/memory.max")" = max ] || fail "its cgroup is there"
	[ -z "$(ls $runtime/handles)" ] || fail "a handle is there: $(ls $runtime/handles)"
	[ "$(as_vm "vmsup ls --json" | tr -d ' \n')" = "[]" ] || fail "it is in the list: $(as_vm "vmsup ls")"
	# Restarted, it knows nothing of it either; what was warm is another's then, and the old ones are gone.
	control restart vmsup.service
	[ "$(as_vm "vmsup ls --json" | tr -d ' \n')" = "[]" ] || fail "it came back: $(as_vm "vmsup ls")"
	same() {
		workers=$(pids_of vmsup-worker | wc -w)
		[ "$(find "$unit_cgroup" -mindepth 1 -maxdepth 1 -name 'w*' | wc -l)" = "$workers" ] &&
			[ "$(find $runtime/workers -name 'w*.sock' | wc -l)" = "$workers" ] && [ "$workers" = 2 ]
	}
	wait_for 10 same || fail "more than the warm pool: $(pids_of vmsup-worker), $(ls $runtime/workers "$unit_cgroup")"
}
# Without --kill-who=main it would be the VMs that are killed.
killed="kill --kill-who=main --signal=KILL"
# outlives HOW…: that this happens to supervisor and jailer.
outlives() {
	still_there "at first"
	for how; do
		# shellcheck disable=SC2086
		for unit in vmsup vmsup-jailer; do
			supervisor=$(main_pid vmsup.service)
			jailer=$(main_pid vmsup-jailer.service)
			control $how $unit.service || why_not "$how $unit"
			wait_for 30 another vmsup.service "$supervisor" || why_not "$how $unit: no supervisor"
			if [ $unit = vmsup ]; then
				[ "$(main_pid vmsup-jailer.service)" = "$jailer" ] || why_not "$how $unit: another jailer"
			else
				wait_for 30 another vmsup-jailer.service "$jailer" || why_not "$how $unit: no jailer"
			fi
			still_there "$how $unit"
		done
	done
}

step "as root installs it"
echo "$(/lib/systemd/systemd --version | head -1); up after $(cut -d' ' -f1 /proc/uptime) s"
# No networks in this one.
systemctl mask --runtime --quiet vmsup-nft.service vmsup-netd.service
systemd-sysusers
echo vmsup:165536:65536 | tee -a /etc/subuid >>/etc/subgid
systemd-tmpfiles --create /usr/lib/tmpfiles.d/vmsup.conf
systemctl daemon-reload

step "the first client starts it"
systemctl start vmsup.socket vmsup-jailer.socket
[ "$(as_vm "vmsup ls --json" | tr -d ' \n')" = "[]" ] || why_not "no empty list"
expect active systemctl is-active vmsup.service
expect "No VM runs." systemctl show -P StatusText vmsup.service
start_web1
expect "1 VM runs." systemctl show -P StatusText vmsup.service
in_jail "$pid"

step "the VM outlives supervisor and jailer"
outlives restart "$killed"

step "its power button at shutdown"
expect active systemctl is-active vmsup-guests.service
systemctl stop vmsup-guests.service
ended() { ! runs; }
wait_for 30 ended || why_not "it runs: $(as_vm "vmsup ls")"
said VMSUP-GUEST-DOWN >/dev/null || why_not "it did not see its power button: $(said GUEST)"
no_trace
systemctl stop vmsup.socket vmsup-jailer.socket vmsup.service
empty() { [ -z "$(pids_of vmsup)$(pids_of vmsup-jailer)$(pids_of vmsup-worker)" ]; }
wait_for 10 empty || why_not "processes are left: $(pids_of vmsup) $(pids_of vmsup-jailer) $(pids_of vmsup-worker)"
wait_for 10 gone $unit_cgroup || why_not "a cgroup is left: $(find $unit_cgroup -type d)"

step "a user's own units"
runtime=/run/user/1000/vmsup
systemd-run -q --unit=manager --uid=1000 --gid=1000 -p Delegate=yes -p Type=notify -p PAMName= \
	-E XDG_RUNTIME_DIR=/run/user/1000 -E HOME=/home/vm /lib/systemd/systemd --user || why_not "no user manager"
unit_cgroup=/sys/fs/cgroup/system.slice/manager.service/app.slice/vmsup-jailer.service
as_vm() { su -s /bin/sh vm -c "export PATH=$PATH XDG_RUNTIME_DIR=/run/user/1000; cd; $*"; }
control() { as_vm "systemctl --user $*"; }
control start vmsup.socket vmsup-jailer.socket
start_web1
outlives restart
as_vm "vmsup kill web1"
no_trace
