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
# A field of a JSON object; enough for names, numbers and states. json FIELD <FILE
json() { tr -d '\n' | sed -n "s/.*\"$1\": *\"\{0,1\}\([^\",}]*\).*/\1/p"; }

# serve [OPTION…]: the user's supervisor, in the background once it is ready.
serve() {
	rm -f /tmp/serve
	(as_vm "vmsup serve --background $*" >/tmp/serve 2>&1 &)
	wait_for 30 grep -q ready /tmp/serve || fail "no supervisor: $(cat /tmp/serve)"
}
# With its jailer alone in a delegated cgroup: what systemd-run --user --scope does elsewhere.
serve_with_cgroup() {
	as_vm "mkdir -p $vm_cgroup/jail"
	serve --jailer $lib/jailer-in-cgroup --worker $bin/vmsup-worker
	wait_for 10 pool_full || fail "the warm pool does not fill: $(footprint)"
}
# The same where the directory is named, above the session's cgroup.
serve_with_named_cgroup() {
	serve --cgroup $vm_cgroup
	wait_for 10 pool_full || fail "the warm pool does not fill: $(footprint)"
}
# Two, without an option.
pool_full() { [ "$(pids_of vmsup-worker | wc -w)" = 2 ]; }

pids_of() { pidof "$1" || true; }

# What VMs may leave behind, counted: workers, cgroup leaves, sockets of workers, memfds of the supervisor. What the warm
# pool has is in it as well, so it is compared with an earlier count.
footprint() {
	# shellcheck disable=SC2012
	echo "workers $(pids_of vmsup-worker | wc -w)," \
		"leaves $(find "$vm_cgroup/jail" -mindepth 1 -maxdepth 1 -type d -name 'w*' 2>/dev/null | wc -l)," \
		"sockets $(find /run/user/1000/vmsup -name 'w*.sock' | wc -l)," \
		"memfds $(for pid in $(pids_of vmsup); do ls -l "/proc/$pid/fd"; done | grep -c memfd:)"
}
same_footprint() { [ "$(footprint)" = "$1" ]; }
# nothing_left FOOTPRINT: everything is as it was; the pool may take a moment to be full again.
nothing_left() {
	wait_for 10 same_footprint "$1" || fail "left behind: $(footprint), where there was: $1"
}

# A shell in a guest: its console. attach VM, then guest COMMAND: prints the output; its exit status is the guest's, or 125
# where the guest says nothing.
attach() {
	rm -f /tmp/keys
	mkfifo -m 666 /tmp/keys
	(as_vm "exec vmsup console --no-history --detach-on-eof $1 </tmp/keys" >/tmp/console 2>&1 &)
	exec 3>/tmp/keys
}
guest() {
	# Counted by a file: most commands are given in subshells.
	command=$(($(cat /tmp/commands 2>/dev/null || echo 0) + 1))
	echo $command >/tmp/commands
	# What is typed is echoed; quotes tell it from what is printed.
	printf '%s\n' "echo 'be''gin'-$command; ($*) 2>&1; echo 'en''d'-$command \$?" >&3
	# A whole line: the status may come later than what stands before it.
	wait_for 40 grep -aqE "^end-$command [0-9]+[[:space:]]*\$" /tmp/console || {
		echo "no answer on the guest's console: $(tail -3 /tmp/console)"
		return 125
	}
	# What was typed while the prompt was being written stands behind it, or in its middle.
	tr -d '\r' </tmp/console | sed -n "/begin-$command\$/,/^end-$command /p" | sed '1d;$d'
	return "$(sed -n "s/^end-$command \([0-9]*\).*/\1/p" /tmp/console)"
}

status_of() { sed -n "s/^$2:[[:space:]]*//p" "/proc/$1/status"; }

# in_jail PID: what the kernel shows of a running worker is what the policy says, thread by thread.
in_jail() {
	pid=$1
	uid=$(status_of "$pid" Uid | cut -f1)
	case $uid in
	1[0-6][0-9][0-9][0-9][0-9]) ;;
	*) fail "uid $uid is not of the subordinate range" ;;
	esac
	[ "$(status_of "$pid" Uid | tr '\t' '\n' | sort -u)" = "$uid" ] || fail "uids differ"
	for ns in cgroup ipc mnt net pid user uts; do
		[ "$(readlink "/proc/$pid/ns/$ns")" != "$(readlink /proc/1/ns/$ns)" ] || fail "$ns namespace is the host's"
	done
	for task in "/proc/$pid/task"/*; do
		status=$task/status
		name=$(cat "$task/comm")
		grep -q '^Seccomp:[[:space:]]2$' "$status" || fail "thread $name is not filtered"
		grep -q '^NoNewPrivs:[[:space:]]1$' "$status" || fail "thread $name may gain privileges"
		[ "$(grep -c '^Cap[A-Za-z]*:[[:space:]]0000000000000000$' "$status")" = 5 ] || fail "thread $name has a capability"
	done
	[ -z "$(ls -A "/proc/$pid/root/")" ] || fail "its root is not empty"
	[ ! -s "/proc/$pid/environ" ] || fail "it has an environment"
	echo "pid $pid: uid $uid, own namespaces, $(find "/proc/$pid/task" -mindepth 1 -maxdepth 1 | wc -l) threads filtered, no capability, empty root"
}
