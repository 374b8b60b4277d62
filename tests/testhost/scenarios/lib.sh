# shellcheck shell=dash
# What the scenarios share. They run as root of the test host; vmsup runs as the user vm. Sourced.

export PATH=/opt/vmsup/bin:$PATH
bin=/opt/vmsup/bin
lib=/opt/vmsup/scenarios
guests=/opt/vmsup/guest
vm_cgroup=/sys/fs/cgroup/vm

step() { echo "-- $*"; }
fail() {
	echo "FAIL: $*"
	exit 1
}
# Runs a command line as the user vm, inside of the subtree that belongs to vm (in_session=no: outside).
in_session=yes
as_vm() {
	(
		[ $in_session = no ] || sh -c "echo \$PPID >$vm_cgroup/session/cgroup.procs"
		exec su -s /bin/sh vm -c "export PATH=$PATH XDG_RUNTIME_DIR=/run/user/1000; cd; $*"
	)
}
# expect TEXT COMMAND…: the output of the command contains the text.
expect() {
	wanted=$1
	shift
	got=$("$@" 2>&1) || true
	case $got in
	*"$wanted"*) ;;
	*) fail "'$*' did not say '$wanted' but: $got" ;;
	esac
}
# Waits until a command line succeeds, at most SECONDS. wait_for SECONDS COMMAND…
wait_for() {
	deadline=$(($(cut -d. -f1 /proc/uptime) + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(cut -d. -f1 /proc/uptime)" -lt "$deadline" ] || return 1
		usleep 100000
	done
}
# A field of a JSON object on one line of input, or of the pretty-printed form; enough for names, numbers and states.
json() { tr -d '\n' | sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p"; }

# The user's supervisor, with its jailer alone in a delegated cgroup: what systemd-run --user --scope does elsewhere.
serve_with_cgroup() {
	as_vm "mkdir -p $vm_cgroup/jail && vmsup serve --jailer $lib/jailer-in-cgroup --worker $bin/vmsup-worker --background"
}

# Nothing of any VM is left: no worker, no leaf, no socket, no memfd. What the warm pool holds is no VM's.
nothing_left() {
	ids=$(as_vm "vmsup ls --json" | tr -d ' \n')
	[ "$ids" = "[]" ] || fail "VMs are left: $ids"
	for maps in /proc/[0-9]*/maps; do
		if grep -q 'memfd:.*ram' "$maps" 2>/dev/null; then
			fail "guest RAM is still mapped by $maps: $(cat "${maps%maps}comm")"
		fi
	done
}
