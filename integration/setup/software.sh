#!/bin/bash
# Makes what the tests of real software need, once: a Debian with servers and
# languages, and a package repository of one package for a container to install.
#   software.sh DIRECTORY
set -euo pipefail
. "$(dirname "$0")/apt.sh"
PATH=$PATH:/usr/sbin:/sbin

out=$1
# Changing one of these lines makes it anew.
packages=nginx-light,postgresql-15,redis-server,git,python3-minimal,libpython3-stdlib,nodejs,systemd-sysv,procps,iproute2,ca-certificates,curl,docker.io,iptables,nftables,busybox-static
install=tree
[ "$(cat "$out/.done" 2>/dev/null)" != "$packages $install" ] || exit 0
need_root "making a Debian"

echo "making a Debian with $packages in $out: 1 GB, some minutes" >&2
mkdir -p "$out"
rm -rf --one-file-system "$out/rootfs" "$out/repository" "$out/.done"
debootstrap --variant=minbase --include="$packages" bookworm "$out/rootfs" http://deb.debian.org/debian >"$out/log" 2>&1 || {
	tail -20 "$out/log" >&2
	exit 1
}
rm -rf "$out/rootfs"/var/cache/apt/archives/*.deb "$out/rootfs"/usr/share/{doc,man,locale}/*

apt_lists
mkdir "$out/repository"
chmod 777 "$out/repository" # apt downloads as a user of its own
(
	cd "$out/repository"
	apt_get -q download "$install"
	for deb in *.deb; do
		dpkg-deb -f "$deb" Package Version Architecture Maintainer Depends Description
		echo "Filename: ./$deb"
		echo "Size: $(stat -c %s "$deb")"
		echo "SHA256: $(sha256sum "$deb" | cut -d' ' -f1)"
		echo
	done >Packages
)
echo "$packages $install" >"$out/.done"
