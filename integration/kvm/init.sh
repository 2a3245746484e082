#!/bin/sh
# PID 1 of the outer machine: loads the modules, lays a writable overlay over the
# host's own file system and runs the payload in it.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /host /rw /root
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
fail() { echo "OUTER failed: $*"; echo "OUTER exit 125"; poweroff -f; }
for m in $(cat /modules.order); do
	insmod "/modules/$m" || fail "load $m"
done
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host || fail "mount the host's files"
mount -t tmpfs -o size=80% tmpfs /rw || fail "mount tmpfs"
mkdir /rw/upper /rw/work /rw/all
mount -t overlay -o lowerdir=/host,upperdir=/rw/upper,workdir=/rw/work overlay /rw/all || fail "mount overlay"
# Not /tmp or /var/tmp: the tree under test may lie there.
mount -t tmpfs tmpfs /rw/all/run
mkdir /rw/all/run/tmp
mount -t proc proc /rw/all/proc
mount -t sysfs sysfs /rw/all/sys
mount -t devtmpfs dev /rw/all/dev
mkdir -p /rw/all/dev/pts /rw/all/dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /rw/all/dev/pts
mount -t tmpfs shm /rw/all/dev/shm
# The unified hierarchy, as current distributions have it.
mount -t cgroup2 cgroup2 /rw/all/sys/fs/cgroup || fail "mount cgroup2"
ip link set lo up
ln -sf /proc/self/fd /rw/all/dev/fd
read -r up _ < /proc/uptime
echo "OUTER ready after $up s"
cp /payload.sh /bin/busybox /rw/all/run/
cat > /rw/all/run/outer.sh <<'STAGE'
/bin/sh /run/payload.sh
code=$?
read -r up _ < /proc/uptime
echo "OUTER done after $up s"
echo "OUTER exit $code"
/run/busybox poweroff -f
STAGE
# The overlay becomes the machine's real root, not a chroot: mounts and
# pivot_root then behave as on any host.
umount /dev /proc /sys
exec switch_root -c /dev/console /rw/all /bin/sh /run/outer.sh
