# What runs in the machine of TestMachine, as users have it: systemd manages cgroups,
# of version 2, and there is KVM. One after the other; the first that fails ends it.
set -x
install -m 755 /payload/husk /usr/local/bin/husk
mkdir -p /etc/husk /tree/bin /tree/tmp
# KVM is emulated here: a boot takes a minute where it would take a second.
echo 'boot_timeout = "400s"' >/etc/husk/config.toml
for a in $(busybox --list); do ln -s busybox /tree/bin/$a; done
rm /tree/bin/busybox
cp /bin/busybox /tree/bin
modprobe -a kvm_amd vhost_vsock
stat -fc %T /sys/fs/cgroup | grep cgroup2fs
husk check
ends() { [ -z "$(systemctl list-units --no-legend "$1-*.scope")" ]; }

# Docker, as husk install sets it up.
husk install docker
systemctl reload docker
soon sh -c 'docker info | grep "Runtimes.*husk"'
docker info | grep 'Cgroup Driver: systemd'
tar -C /tree -c . | docker import -c 'CMD ["sh"]' - box
eq "$(docker run --rm --runtime husk box uname -r)" "$(uname -r)"
docker run -d --name web --runtime husk --memory 200m --pids-limit 50 --cpus 0.5 -p 8080:80 box \
	sh -c 'echo page >/tmp/index.html; exec httpd -f -p 80 -h /tmp'
id=$(docker inspect -f '{{.Id}}' web)
systemctl is-active docker-$id.scope
pid=$(docker inspect -f '{{.State.Pid}}' web)
has "$(cat /proc/$pid/cgroup)" "docker-$id.scope"
soon is page curl -s http://127.0.0.1:8080/
eq "$(docker exec web cat /sys/fs/cgroup/memory.max)" 209715200
eq "$(echo hello | docker exec -i web cat)" hello
code 7 docker exec web sh -c 'exit 7'
docker exec -d web sleep 1000
soon sh -c "grep -q 'sleep 1000' /proc/[0-9]*/cmdline"
docker pause web
docker unpause web
docker update --memory 300m --memory-swap 300m web
eq "$(docker exec web cat /sys/fs/cgroup/memory.max)" 314572800
docker stats --no-stream web
docker top web
docker stop -t 1 web
eq "$(docker inspect -f '{{.State.ExitCode}}' web)" 137
docker rm web
soon ends docker
docker run --name greedy --runtime husk --memory 100m box tail /dev/zero || true
eq "$(docker inspect -f '{{.State.OOMKilled}}' greedy)" true
docker rm greedy
[ "$(husk template list | wc -l)" -gt 1 ]

# podman, as its package sets it up.
podman=/usr/bin/podman
podman() { command $podman --runtime /usr/local/bin/husk "$@"; }
eq "$(podman info -f '{{.Host.CgroupManager}} {{.Host.CgroupsVersion}}')" "systemd v2"
tar -C /tree -c . | podman import -c 'CMD ["sh"]' - box
eq "$(podman run --rm box uname -r)" "$(uname -r)"
podman run -d --name web --memory 200m -p 8081:80 box sh -c 'echo page >/tmp/index.html; exec httpd -f -p 80 -h /tmp'
soon is page curl -s http://127.0.0.1:8081/
eq "$(podman exec web cat /sys/fs/cgroup/memory.max)" 209715200
podman pause web
podman unpause web
podman stats --no-stream web
podman rm -f -t 1 web
soon ends libpod
