#!/bin/bash
# Makes, once, the disk of a machine as users have it: Debian 12 with systemd, cgroup
# v2, and Docker and podman as their packages set them up.
#   machine.sh DIRECTORY
set -euo pipefail
. "$(dirname "$0")/apt.sh"
PATH=$PATH:/usr/sbin:/sbin

out=$1
# Changing this line makes it anew.
packages=linux-image-amd64,initramfs-tools,systemd-sysv,dbus,apparmor,procps,curl,ca-certificates,busybox-static,iptables,qemu-system-x86,docker.io,podman,conmon,crun,netavark,aardvark-dns
[ "$(cat "$out/.done" 2>/dev/null)" != "$packages" ] || exit 0
need_root "making a Debian"

echo "making a machine with Docker and podman in $out: 2 GB, some minutes" >&2
mkdir -p "$out"
rm -rf --one-file-system "$out/rootfs" "$out/.done"
debootstrap --variant=minbase --include="$packages" bookworm "$out/rootfs" http://deb.debian.org/debian >"$out/log" 2>&1 || {
	tail -20 "$out/log" >&2
	exit 1
}
rm -rf "$out/rootfs"/var/cache/apt/archives/*.deb
echo '/dev/vda / ext4 defaults 0 1' >"$out/rootfs/etc/fstab"
# The second disk is a tar archive of the test's. The clock of an emulated machine
# runs behind, so no start may be given up for its time.
cat >"$out/rootfs/etc/systemd/system/payload.service" <<'UNIT'
[Unit]
After=docker.service
[Service]
Type=oneshot
TimeoutStartSec=infinity
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS0
ExecStart=/bin/sh -c 'mkdir -p /payload && tar -xf /dev/vdb -C /payload && bash /payload/run.sh; echo "exit code $?"'
ExecStopPost=/bin/systemctl poweroff --force
[Install]
WantedBy=multi-user.target
UNIT
ln -s ../payload.service "$out/rootfs/etc/systemd/system/multi-user.target.wants/payload.service"
cp "$out"/rootfs/boot/vmlinuz-* "$out/vmlinuz"
cp "$out"/rootfs/boot/initrd.img-* "$out/initrd"
rm -f "$out/disk"
truncate -s 8G "$out/disk"
mke2fs -q -t ext4 -d "$out/rootfs" "$out/disk"
rm -rf --one-file-system "$out/rootfs"
echo "$packages" >"$out/.done"
