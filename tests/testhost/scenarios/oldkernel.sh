# shellcheck shell=dash
# limit: 120
# Debian's 6.1 is the oldest kernel supported: landlock ABI 2, no SO_PEERPIDFD, no pidfs, no MFD_NOEXEC_SEAL. vmsup says so
# and works; and with a user who has no subordinate ids it works as well.
set -eu
. /opt/vmsup/scenarios/lib.sh

step "doctor"
as_vm "vmsup doctor" || true
expect "landlock" as_vm "vmsup doctor | tr A-Z a-z"
expect "ABI 2" as_vm "vmsup doctor | grep '^ok *landlock'"

step "bare-metal guests, as a user with subordinate ids"
in_session=no
as_vm "vmsup run --rm /opt/vmsup/examples/hello.json" >/tmp/hello 2>/tmp/hello.err || fail "run: $(cat /tmp/hello /tmp/hello.err)"
grep -q HELLOGUEST /tmp/hello || fail "hello: $(cat /tmp/hello)"

step "and as one without"
su -s /bin/sh bare -c "export PATH=$PATH; unset XDG_RUNTIME_DIR; vmsup run --rm /opt/vmsup/examples/hello.json" >/tmp/bare 2>/tmp/bare.err ||
	fail "run: $(cat /tmp/bare /tmp/bare.err)"
grep -q HELLOGUEST /tmp/bare || fail "hello: $(cat /tmp/bare)"

step "devices, under hardware-like virtualisation"
truncate -s 4M /home/vm/disk.img
chown vm /home/vm/disk.img
for guest in block hostile; do
	cat >/home/vm/$guest.json <<END
{ "name": "$guest", "cpus": 1, "memory_mib": 64, "boot": { "kernel": "$guests/$guest.elf", "cmdline": "" },
  "disks": [ { "path": "disk.img" } ] }
END
	as_vm "vmsup run --rm ~/$guest.json" >/tmp/$guest 2>&1 || fail "$guest: $(tail -3 /tmp/$guest)"
	tail -1 /tmp/$guest
done
grep -q "BLOCK PASS" /tmp/block || fail "block: $(grep FAIL /tmp/block)"
grep -q "HOSTILE SURVIVED" /tmp/hostile || fail "hostile: $(tail -1 /tmp/hostile)"
