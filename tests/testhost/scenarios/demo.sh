# shellcheck shell=dash
# limit: 240
# Not a test but the second half of `make demo`: the main job with a stock kernel, commands and answers.
set -eu
. /opt/vmsup/scenarios/lib.sh

show() {
	printf '\nvm@testhost$ %s\n' "$*"
	as_vm "$*"
}
as_vm "mkdir ~/web && cp /opt/vmsup/linux/* ~/web && chmod u+w ~/web/*"
cat >/home/vm/web/vm.json <<'END'
{
  "name": "web1", "cpus": 2, "memory_mib": 256,
  "boot": { "kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0 panic=-1 quiet" },
  "disks": [ { "path": "root.img" } ],
  "limits": { "memory_max_mib": 384, "pids_max": 32 }
}
END
serve_with_cgroup
show "uname -r; id"
show "cat web/vm.json"
show "vmsup start web/vm.json"
wait_for 150 sh -c "su -s /bin/sh vm -c 'XDG_RUNTIME_DIR=/run/user/1000 $bin/vmsup logs web1' | grep -q VMSUP-GUEST-BUTTON" ||
	fail "the guest does not come up"
show "vmsup logs web1"
show "vmsup ls"
show "vmsup inspect web1"
show "vmsup stop web1"
show "vmsup logs web1 | tail -2"
show "vmsup ls"
show "vmsup rm web1"
