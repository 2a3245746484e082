#!/bin/bash
# Makes the root file system of a Debian 13 with its engines, once: their C library
# is newer than that of Debian 12.
#   debian13.sh DIRECTORY
set -euo pipefail
. "$(dirname "$0")/apt.sh"
PATH=$PATH:/usr/sbin:/sbin

out=$1
# Changing this line makes it anew.
packages=docker.io,docker-cli,docker-compose,containerd,runc,podman,conmon,netavark,aardvark-dns,catatonit,tini,iptables,qemu-system-x86,kmod,procps,iproute2,busybox-static,jq
[ "$(cat "$out.done" 2>/dev/null)" != "$packages" ] || exit 0
need_root "making a Debian 13"
command -v debootstrap >/dev/null || apt_get install -q -y --no-install-recommends debootstrap >&2
key=/usr/share/keyrings/debian-archive-trixie-stable.gpg
[ -e "$key" ] || key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "making a Debian 13 in $out: 1 GB, some minutes" >&2
rm -rf --one-file-system "$out" "$out.new"
mkdir -p "$out.new"
debootstrap --variant=minbase --include="$packages" --keyring="$key" trixie "$out.new" http://deb.debian.org/debian >"$out.log" 2>&1 || {
	tail -20 "$out.log" >&2
	exit 1
}
rm -rf "$out.new"/var/cache/apt/archives/*.deb
mv "$out.new" "$out"
echo "$packages" >"$out.done"
