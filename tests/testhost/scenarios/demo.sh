# shellcheck shell=dash
# limit: 240
# Not a test but the second half of `make demo`: the main job with a stock kernel, commands and answers.
set -eu
. /opt/vmsup/scenarios/lib.sh
. /opt/vmsup/scenarios/lib-net.sh

show() {
	printf '\nvm@testhost$ %s\n' "$*"
	as_vm "$*"
}
show_in_guest() {
	printf '\nroot@web1# %s\n' "$*"
	guest "$*"
}
as_vm "mkdir ~/web && cp /opt/vmsup/linux/* ~/web && chmod u+w ~/web/*"
cat >/home/vm/web/vm.json <<'END'
{
  "name": "web1", "cpus": 2, "memory_mib": 256,
  "boot": { "kernel": "vmlinuz", "initrd": "initrd.img", "cmdline": "console=ttyS0 panic=-1 quiet" },
  "disks": [ { "path": "root.img" } ],
  "nets": [ { "network": "default", "forwards": [ { "host": 8080, "guest": 80 } ] } ],
  "limits": { "memory_max_mib": 384, "pids_max": 32 }
}
END
host_with_networks
serve_with_cgroup
show "uname -r; id"
show "vmsup net ls"
show "cat web/vm.json"
show "vmsup start web/vm.json"
wait_for 150 sh -c "su -s /bin/sh vm -c 'XDG_RUNTIME_DIR=/run/user/1000 $bin/vmsup logs web1' | grep -q VMSUP-GUEST-BUTTON" ||
	fail "the guest does not come up"
show "vmsup logs web1"
show "vmsup ls"
show "vmsup inspect web1"
show "vmsup net leases"
attach web1
show_in_guest "ip route; cat /etc/resolv.conf"
show_in_guest "wget -q -O - http://192.0.2.2/cgi-bin/who"
show_in_guest "mkdir -p /tmp/www; echo hello from web1 >/tmp/www/index.html; httpd -h /tmp/www"
exec 3>&-
printf '\noutside$ wget -q -O - http://192.0.2.1:8080/\n'
outside wget -q -O - http://192.0.2.1:8080/
show "vmsup stop web1"
show "vmsup logs web1 | tail -2"
show "vmsup ls"
show "vmsup rm web1"
