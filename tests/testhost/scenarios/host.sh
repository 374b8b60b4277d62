# shellcheck shell=dash
# limit: 60
# The test host itself: what the other scenarios take for granted.
set -eu
. /opt/vmsup/scenarios/lib.sh

step "kernel and security modules"
uname -r
expect 6.1. uname -r
expect landlock cat /sys/kernel/security/lsm

step "KVM, for the user"
[ "$(stat -c %a:%G /dev/kvm)" = 660:kvm ] || fail "/dev/kvm: $(ls -l /dev/kvm)"
grep -q svm /proc/cpuinfo || fail "no SVM"

step "cgroups: delegated, with controllers"
for controller in cpu memory pids; do
	grep -qw $controller "$vm_cgroup/cgroup.controllers" || fail "no $controller controller"
done
as_vm "mkdir $vm_cgroup/mine && rmdir $vm_cgroup/mine" || fail "the user cannot make a cgroup"
expect 0::/vm/session as_vm "cat /proc/self/cgroup"
as_vm "mkdir $vm_cgroup/mine && sh -c 'echo \$\$ >$vm_cgroup/mine/cgroup.procs'" || fail "the user cannot enter a cgroup"

step "the user, its subordinate ids, newuidmap"
expect "uid=1000(vm)" as_vm id
expect "kvm" as_vm id
as_vm "unshare -U sleep 5 & usleep 500000; newuidmap \$! 0 100000 1 && newgidmap \$! 0 100000 1 && cat /proc/\$!/uid_map" || fail newuidmap
expect "100000" as_vm "unshare -U sleep 5 & usleep 500000; newuidmap \$! 0 100000 1; cat /proc/\$!/uid_map"

step "a guest in this KVM, in namespaces of its own"
expect HELLOGUEST as_vm "$bin/floor $guests/hello.elf 128"
