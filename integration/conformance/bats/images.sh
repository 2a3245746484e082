#!/bin/bash
# Makes the root file systems that runc's suite would download: busybox, and a
# small Debian, out of Debian's packages.
#   images.sh DIRECTORY
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$1"
out=$(realpath "$1")
arch=$(dpkg --print-architecture)
busybox=$out/busybox-$arch.tar.xz
debian=$out/debian-$arch.tar.xz

work=$(mktemp -d)
# debootstrap unmounts what it has mounted; if it could not, nothing may be
# removed through it.
trap 'grep -q " $work" /proc/self/mountinfo || rm -rf "$work"' EXIT

if [ ! -e "$busybox" ]; then
	root=$work/busybox
	mkdir -p "$root"/{bin,dev,etc,home,root,tmp,usr/bin,usr/sbin,var/spool/mail,var/www}
	# No proc and no sys: there are tests that make them.
	chmod 1777 "$root/tmp"
	cp "$(command -v busybox)" "$root/bin/busybox"
	for applet in $("$root/bin/busybox" --list); do
		[ -e "$root/bin/$applet" ] || ln "$root/bin/busybox" "$root/bin/$applet"
	done
	cat >"$root/etc/passwd" <<-'LIST'
		root:x:0:0:root:/root:/bin/sh
		daemon:x:1:1:daemon:/usr/sbin:/bin/false
		mail:x:8:8:mail:/var/spool/mail:/bin/false
		www-data:x:33:33:www-data:/var/www:/bin/false
		nobody:x:65534:65534:nobody:/home:/bin/false
	LIST
	cat >"$root/etc/group" <<-'LIST'
		root:x:0:
		daemon:x:1:
		tty:x:5:
		mail:x:8:
		www-data:x:33:
		users:x:100:
		nogroup:x:65534:
	LIST
	tar -C "$root" -cJf "$busybox.part" .
	mv "$busybox.part" "$busybox"
fi

if [ ! -e "$debian" ]; then
	. /etc/os-release
	echo "making a Debian root file system (a minute or two)" >&2
	debootstrap --variant=minbase "${VERSION_CODENAME:-bookworm}" "$work/debian" http://deb.debian.org/debian >"$out/debootstrap.log" 2>&1 || {
		tail -5 "$out/debootstrap.log" >&2
		exit 1
	}
	rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/*
	tar -C "$work/debian" --exclude './dev/*' -c . | xz -T0 -1 >"$debian.part"
	mv "$debian.part" "$debian"
fi
rm -f "$out/debootstrap.log"
