# What the scripts of this directory share. Sourced; `set -eu` is the caller's.
# shellcheck shell=bash disable=SC2034

here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
out=$top/target/testhost

say() { echo "testhost: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# Fails with the packages that are missing. need PROGRAM:PACKAGE…
need() {
	local missing= pair
	for pair; do
		PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
	done
	[ -z "$missing" ] || die "missing Debian packages:$missing (make deps installs them)"
}
PATH=$PATH:/usr/sbin:/sbin

# True where TARGET is older than one of the other files, or not there.
stale() {
	local target=$1
	shift
	[ -e "$target" ] || return 0
	[ -n "$(find "$@" -newer "$target" -print -quit 2>/dev/null)" ]
}

# Debian's stock cloud kernel, unpacked and not installed: $kernel/vmlinuz and $kernel/modules.
kernel=$out/kernel
fetch_kernel() {
	[ -e "$kernel/vmlinuz" ] && return
	need apt-get:apt dpkg-deb:dpkg
	local package
	package=$(apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
	[ -n "$package" ] || die "apt does not know linux-image-cloud-amd64: run apt-get update (make deps does)"
	mkdir -p "$out/cache"
	set -- "$out/cache/$package"_*.deb
	if [ ! -e "$1" ]; then
		say "downloading $package"
		(cd "$out/cache" && apt-get download "$package" >/dev/null 2>&1) || die "apt-get download $package failed"
		set -- "$out/cache/$package"_*.deb
	fi
	rm -rf "$kernel.new" "$kernel"
	dpkg-deb -x "$1" "$kernel.new"
	mv "$kernel.new/boot/vmlinuz-"* "$kernel.new/vmlinuz"
	mv "$kernel.new/boot/config-"* "$kernel.new/config"
	find "$kernel.new/lib/modules" -name '*.ko' >"$kernel.new/list"
	mkdir "$kernel.new/modules"
	while read -r file; do
		mv "$file" "$kernel.new/modules/$(basename "$file" | tr - _)"
	done <"$kernel.new/list"
	rm -rf "$kernel.new/lib" "$kernel.new/boot" "$kernel.new/usr" "$kernel.new/list"
	mv "$kernel.new" "$kernel"
}

# Names of the modules that these need, in the order of loading, themselves included; what is built in is left out.
closure() {
	local name file depends
	for name; do
		file=$kernel/modules/$name.ko
		[ -e "$file" ] || continue
		depends=$(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr ',-' ' _')
		# shellcheck disable=SC2086
		closure $depends
		echo "$name"
	done | awk '!seen[$0]++'
}

# Copies modules and the order of loading into DIR/modules.
install_modules() {
	local dir=$1
	shift
	mkdir -p "$dir/modules"
	closure "$@" >"$dir/modules/order"
	while read -r name; do
		cp "$kernel/modules/$name.ko" "$dir/modules/"
	done <"$dir/modules/order"
}

# Copies dynamic programs into DIR/usr/bin, and the libraries that they name to where the loader looks for them.
install_programs() {
	local dir=$1 program file
	shift
	mkdir -p "$dir/usr/bin"
	for program; do
		cp -L "$(command -v "$program")" "$dir/usr/bin/"
		ldd "$dir/usr/bin/${program##*/}" | grep -o '/[^ ]*' | while read -r file; do
			mkdir -p "$dir$(dirname "$file")"
			cp -Lu "$file" "$dir$file"
		done
	done
}

# A directory as a compressed cpio archive, everything owned by root.
pack() {
	(cd "$1" && find . -print0 | sort -z | cpio --null --create --format=newc --owner=0:0 --quiet) | gzip -1 >"$2.new"
	mv "$2.new" "$2"
}

busybox_file=/bin/busybox
[ -e /usr/bin/busybox ] && busybox_file=/usr/bin/busybox
