### a pod
engine pod create --name $n-pod
engine run -d --pod $n-pod --name $n box testprog serve 8080
soon is hello engine run --rm --pod $n-pod box wget -qO- http://127.0.0.1:8080/hello
engine pod rm -f $n-pod

### build with RUN
mkdir $dir/b
printf 'FROM box\nRUN echo built >/built\nCMD cat /built\n' >$dir/b/Dockerfile
engine build --isolation oci -q -t $n-img $dir/b
eq "$(engine run --rm $n-img)" built

### mount
engine run -d --name $n box sh -c 'echo x >/made; sleep 1000'
soon engine exec $n test -e /made
eq "$(cat $(engine mount $n)/made)" x

### --uidmap
engine run --rm --uidmap 0:100000:65536 box id -u

### a health check
engine run -d --name $n --health-cmd 'test -e /healthy' --health-interval disable box sleep 1000
code 1 engine healthcheck run $n
engine exec $n touch /healthy
engine healthcheck run $n

### husk install and uninstall (alone)
trap '$husk uninstall podman' EXIT
printf '#!/bin/sh\nexec %s --config %s "$@"\n' $husk $settings >$dir/husk
chmod +x $dir/husk
has "$($husk install --binary $dir/husk podman)" "changed /etc/containers/containers.conf.d/husk.conf"
[ "$(engine --runtime husk run --rm box cat /proc/sys/kernel/random/boot_id)" != "$(cat /proc/sys/kernel/random/boot_id)" ]
code 127 engine --runtime husk run --rm box nosuchprogram
has "$($husk install --binary $dir/husk podman)" "nothing to do"
$husk uninstall podman
engine --runtime husk run --rm box true && exit 1
[ ! -e /etc/containers/containers.conf.d/husk.conf ]

### --preserve-fds
echo in >$dir/f
has "$(engine run --rm --preserve-fds 1 box sh -c 'cat <&3' 3<$dir/f)" in
engine run -d --name $n box sleep 1000
engine exec --preserve-fds 2 $n sh -c 'cat <&4 >&3' 3>$dir/g 4<$dir/f
eq "$(cat $dir/g)" in

### socket activation
$testprog activate 127.0.0.1:18$net engine run --rm box testprog activated &
soon is "HELLO tcp" busybox sh -c "echo -n hello | timeout 5 nc 127.0.0.1 18$net"

### --sdnotify container
$testprog manager $dir/manager >$dir/heard &
trap "kill $!" EXIT
soon test -S $dir/manager
NOTIFY_SOCKET=$dir/manager engine run -d --name $n --sdnotify container box sh -c 'testprog notify READY=1 "STATUS=up"; sleep 1000'
soon grep -q READY=1 $dir/heard
has "$(cat $dir/heard)" MAINPID=

### an overlay and an image as mounts
mkdir $dir/d
echo lower >$dir/d/f
eq "$(engine run --rm -v $dir/d:/d:O box sh -c 'cat /d/f; echo upper >/d/f; cat /d/f')" "lower
upper"
eq "$(cat $dir/d/f)" lower
eq "$(engine run --rm --mount type=image,src=box,dst=/i box cat /i/etc/marker)" image

### build with VOLUME
mkdir $dir/b
printf 'FROM box\nRUN mkdir /v && echo kept >/v/f\nVOLUME /v\nRUN cat /v/f >/copy\n' >$dir/b/Dockerfile
engine build --isolation oci -q -t $n-img $dir/b
eq "$(engine run --rm $n-img cat /copy)" kept
