### exit codes
for c in 0 1 42; do code $c engine run --rm box sh -c "exit $c"; done
code 127 engine run --rm box /no/such/program
code 126 engine run --rm box /etc/passwd
code 125 engine run --rm --no-such-flag box true

### killed by a signal
engine run -d --name $n box sleep 1000
engine kill $n
eq "$(engine wait $n)" 137
eq "$(field $n .State.ExitCode)" 137

### stop with SIGTERM
engine run -d --name $n box sh -c 'trap "exit 143" TERM; echo >/ready; while :; do sleep 0.1; done'
soon engine exec $n test -e /ready
engine stop $n
eq "$(field $n .State.ExitCode)" 143

### stdout and stderr
eq "$(engine run --rm box sh -c 'echo out; echo err >&2' 2>/dev/null)" out
eq "$(engine run --rm box sh -c 'echo out; echo err >&2' 2>&1 >/dev/null)" err

### stdin
eq "$(echo hello | engine run -i --rm box cat)" hello
eq "$(head -c 3000000 /dev/zero | engine run -i --rm box wc -c)" 3000000

### stdin is closed without -i
eq "$(echo hello | engine run --rm box wc -c)" 0

### a terminal
out=$(script -qec 'engine run -it --rm box sh -c "tty; stty size; echo done"' /dev/null </dev/null | tr -d '\r')
has "$out" /dev/pts/0
has "$out" done

### -t without -i
has "$(engine run -t --rm box sh -c 'tty; echo one; echo two' | tr -d '\r')" "one
two"

### -d and logs
engine run -d --name $n box sh -c 'echo one; echo two >&2; sleep 1000'
soon is "one
two" eval "engine logs $n 2>&1 | sort"
eq "$(field $n .State.Running)" true

### logs are complete after the end
engine run --name $n box sh -c 'i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; printf last' >/dev/null
eq "$(engine logs $n | wc -l)" 2000
eq "$(engine logs $n | tail -c 4)" last

### logs -f ends with the container
engine run -d --name $n box sh -c 'for i in 1 2 3; do echo $i; sleep 0.2; done'
eq "$(engine logs -f $n | tr -d '\n')" 123

### --rm removes
engine run --rm --name $n box true
engine container inspect $n && exit 1
true

### --init
has "$(engine run --rm --init box sh -c 'cat /proc/1/comm; echo ok')" init
code 3 engine run --rm --init box sh -c 'exit 3'

### --entrypoint
eq "$(engine run --rm --entrypoint /bin/echo box hello world)" "hello world"

### -e and --env-file
printf 'FROM_FILE=yes\n' >$dir/env
eq "$(engine run --rm -e A=1 -e B='two words' --env-file $dir/env box sh -c 'echo "$A $B $FROM_FILE"')" "1 two words yes"

### -w
eq "$(engine run --rm -w /tmp box pwd)" /tmp

### -u
eq "$(engine run --rm -u user box id -u)" 1000
eq "$(engine run --rm -u 12:34 box sh -c 'id -u; id -g')" "12
34"
engine run --rm -u nobodyatall box true && exit 1
true

### --group-add
has " $(engine run --rm --group-add 777 box id -G) " " 777 "

### --hostname and /etc files
eq "$(engine run --rm --hostname web box hostname)" web
has "$(engine run --rm --hostname web box cat /etc/hosts)" web
has "$(engine run --rm --add-host db:10.1.2.3 box cat /etc/hosts)" 10.1.2.3
has "$(engine run --rm --dns 10.9.8.7 box cat /etc/resolv.conf)" 10.9.8.7

### --read-only
code 1 engine run --rm --read-only box touch /x
engine run --rm --read-only --tmpfs /t box touch /t/x

### --tmpfs
has "$(engine run --rm --tmpfs /t:size=1m box df -k /t)" 1024
has "$(engine run --rm --tmpfs /t:size=1m,mode=1700 box stat -c %a /t)" 1700

### --shm-size
has "$(engine run --rm --shm-size 8m box df -k /dev/shm)" 8192

### -v directory
mkdir $dir/d
echo host >$dir/d/f
eq "$(engine run --rm -v $dir/d:/d box sh -c 'cat /d/f; echo guest >/d/g')" host
eq "$(cat $dir/d/g)" guest

### -v file
echo host >$dir/f
eq "$(engine run --rm -v $dir/f:/f box cat /f)" host
engine run --rm -v $dir/f:/f box sh -c 'echo guest >>/f'
eq "$(tail -1 $dir/f)" guest

### -v read-only
mkdir $dir/d
code 1 engine run --rm -v $dir/d:/d:ro box touch /d/x

### a named volume
engine volume create $n-v
engine run --rm -v $n-v:/v box sh -c 'echo kept >/v/f'
eq "$(engine run --rm -v $n-v:/v box cat /v/f)" kept

### a volume takes what the image has there
eq "$(engine run --rm -v $n-v:/etc box cat /etc/marker)" image

### --mount
mkdir $dir/d
engine run --rm --mount type=bind,src=$dir/d,dst=/d box touch /d/x
[ -e $dir/d/x ]
code 1 engine run --rm --mount type=bind,src=$dir/d,dst=/d,readonly box touch /d/y
has "$(engine run --rm --mount type=tmpfs,dst=/t,tmpfs-size=1m box df -k /t)" 1024

### --cap-add and --cap-drop
code 1 engine run --rm --cap-drop CHOWN box chown 1 /tmp
engine run --rm box chown 1 /tmp
code 2 engine run --rm box ip link set lo down
engine run --rm --cap-add NET_ADMIN box ip link set lo down

### --privileged
engine run --rm --privileged box sh -c 'mkdir /m && mount -t tmpfs x /m'

### no-new-privileges
has "$(engine run --rm --security-opt no-new-privileges box cat /proc/self/status)" "NoNewPrivs:	1"

### seccomp
cat >$dir/s.json <<-'J'
	{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}
J
code 1 engine run --rm --security-opt seccomp=$dir/s.json box mkdir /x
engine run --rm --security-opt seccomp=unconfined box mkdir /x
has "$(engine run --rm box cat /proc/self/status)" "Seccomp:	2"

### --ulimit
eq "$(engine run --rm --ulimit nofile=123:456 --ulimit nproc=1000:1000 box sh -c 'ulimit -Sn; ulimit -Hn')" "123
456"

### --sysctl
eq "$(engine run --rm --sysctl net.ipv4.ip_forward=1 box cat /proc/sys/net/ipv4/ip_forward)" 1
eq "$(engine run --rm --sysctl kernel.msgmax=4096 box cat /proc/sys/kernel/msgmax)" 4096

### --memory
engine run -d --name $n --memory 64m box sleep 1000
eq "$(field $n .HostConfig.Memory)" 67108864

### out of memory
code 137 engine run --name $n --memory 32m --memory-swap 32m box testprog memory 200

### --cpus and --cpu-shares
engine run --rm --cpus 0.5 --cpu-shares 512 box true

### --pids-limit
has "$(engine run --rm --pids-limit 20 box sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25; do sleep 5 & done; wait' 2>&1 || true)" fork

### --network none
eq "$(engine run --rm --network none box ls /sys/class/net)" lo

### the network is up
engine run -d --name $n box testprog serve 8080
ip=$(engine exec $n hostname -i | awk '{print $1}')
soon is hello busybox wget -qO- http://$ip:8080/hello
eq "$(engine run --rm box wget -qO- http://$ip:8080/hello)" hello

### -p tcp
engine run -d --name $n -p 127.0.0.1::8080 box testprog serve 8080
port=$(engine port $n 8080/tcp | head -1 | sed 's/.*://')
soon is hello busybox wget -qO- http://127.0.0.1:$port/hello

### -p udp
engine run -d --name $n -p 127.0.0.1::8080/udp box testprog serve 8080
port=$(engine port $n 8080/udp | head -1 | sed 's/.*://')
soon is hello timeout 5 $testprog udp 127.0.0.1:$port hello

### containers find each other by name
engine network create $n-net
engine run -d --name $n --network $n-net box testprog serve 8080
soon is hello engine run --rm --network $n-net box wget -qO- http://$n:8080/hello

### --network container
engine run -d --name $n box testprog serve 8080
engine run --rm --network container:$n box true
soon is hello engine run --rm --network container:$n box wget -qO- http://127.0.0.1:8080/hello

### --network host
engine run --rm --network host box ls /sys/class/net

### --mac-address
has "$(engine run --rm --mac-address 02:11:22:33:44:55 box cat /sys/class/net/eth0/address)" 02:11:22:33:44:55

### --ip in a network of one's own
engine network create --subnet 10.77.$net.0/24 $n-net
has "$(engine run --rm --network $n-net --ip 10.77.$net.9 box ip addr)" 10.77.$net.9/24

### exec
engine run -d --name $n box sleep 1000
eq "$(engine exec $n echo hello)" hello
code 42 engine exec $n sh -c 'exit 42'
engine exec $n /no/such/program && exit 1
eq "$(echo in | engine exec -i $n cat)" in
eq "$(engine exec -u user -w /tmp -e X=1 $n sh -c 'id -u; pwd; echo $X')" "1000
/tmp
1"

### exec -it
engine run -d --name $n box sleep 1000
out=$(script -qec "engine exec -it $n sh -c 'tty; echo done'" /dev/null </dev/null | tr -d '\r')
has "$out" /dev/pts/
has "$out" done

### exec -d
engine run -d --name $n box sleep 1000
engine exec -d $n sh -c 'echo x >/made; sleep 1000'
soon engine exec $n test -e /made

### exec in what has stopped
engine run --name $n box true
engine exec $n true && exit 1
true

### attach
engine run -d -i --name $n box sh -c 'read x; echo "got $x"'
has "$( (echo hello; sleep 3) | timeout 20 engine attach $n)" "got hello"
eq "$(engine wait $n)" 0

### create, start, wait
engine create --name $n box sh -c 'exit 7'
eq "$(field $n .State.Status | head -c 7)" created
engine start $n
eq "$(engine wait $n)" 7

### start again
engine run --name $n box sh -c 'echo run >>/log; cat /log'
eq "$(engine start -a $n)" "run
run"

### stop and its time
engine run -d --name $n box sh -c 'trap "" TERM; while :; do sleep 0.1; done'
engine stop -t 1 $n
eq "$(field $n .State.ExitCode)" 137

### --stop-signal
engine run -d --name $n --stop-signal USR1 box sh -c 'trap "exit 5" USR1; echo >/ready; while :; do sleep 0.1; done'
soon engine exec $n test -e /ready
engine stop $n
eq "$(field $n .State.ExitCode)" 5

### kill -s
engine run -d --name $n box sh -c 'trap "echo got >/got" USR2; while :; do sleep 0.1; done'
engine exec $n true
soon sh -c "engine kill -s USR2 $n; engine exec $n test -e /got"

### pause and unpause
engine run -d --name $n box sleep 1000
engine pause $n
eq "$(field $n .State.Status)" paused
engine unpause $n
eq "$(field $n .State.Status)" running
engine exec $n true

### restart
engine run -d --name $n box sleep 1000
before=$(field $n .State.Pid)
engine restart -t 1 $n
eq "$(field $n .State.Running)" true
[ "$(field $n .State.Pid)" != "$before" ]

### --restart on-failure
engine run -d --name $n --restart on-failure:2 box sh -c 'echo x >>/log; exit 1'
soon is 1 engine inspect -f '{{if not .State.Running}}{{.State.ExitCode}}{{end}}' $n
soon is 3 sh -c "engine cp $n:/log - | tar -xO | wc -l"

### rename
engine run -d --name $n box sleep 1000
engine rename $n $n-new
eq "$(field $n-new .State.Running)" true

### update
engine run -d --name $n --memory 128m box sleep 1000
engine update --cpu-shares 200 $n

### top
engine run -d --name $n box sleep 1234
has "$(engine top $n)" "sleep 1234"

### stats
engine run -d --name $n box sleep 1000
has "$(engine stats --no-stream $n)" "$(field $n .Id | head -c 12)"

### inspect
engine run -d --name $n box sleep 1000
pid=$(field $n .State.Pid)
[ -d /proc/$pid ]
engine rm -f $n
[ ! -d /proc/$pid ]

### events
code 4 engine run --name $n box sh -c 'exit 4'
# Docker takes "until" to the second, podman has --stream.
died() { (engine events --stream=false --since 600s --filter container=$n || engine events --since 600s --until 0s --filter container=$n) | grep die ; }
soon died

### cp
engine run -d --name $n box sleep 1000
echo in >$dir/f
engine cp $dir/f $n:/tmp/f
eq "$(engine exec $n cat /tmp/f)" in
engine exec $n sh -c 'echo out >/tmp/g'
engine cp $n:/tmp/g $dir/g
eq "$(cat $dir/g)" out
engine kill $n
engine wait $n
engine cp $n:/tmp/g $dir/h
eq "$(cat $dir/h)" out
engine cp $dir/f $n:/tmp/k
engine start $n
eq "$(engine exec $n cat /tmp/k)" in

### diff, commit, export
engine run --name $n box sh -c 'echo x >/made; rm /etc/marker'
has "$(engine diff $n)" "A /made"
has "$(engine diff $n)" "D /etc/marker"
engine commit $n $n-img
eq "$(engine run --rm $n-img cat /made)" x
engine export $n | tar -t | grep -q '^made$'

### --device of a character device
code 0 engine run --rm --device /dev/null:/dev/mynull box sh -c 'echo x >/dev/mynull'

### --pid host
engine run --rm --pid host box true

### --ipc host
engine run --rm --ipc host box true

### --uts host
eq "$(engine run --rm --uts host box hostname)" "$(hostname)"

### --cgroupns
engine run --rm --cgroupns private box true
engine run --rm --cgroupns host box true

### a pipeline that ends early
timeout 60 engine run --name $n box sh -c 'while :; do echo line; done' | head -1

### a large stream through
sum=$(head -c 30000000 /dev/urandom | tee $dir/in | sha256sum)
eq "$(engine run -i --rm box sha256sum <$dir/in)" "$sum"

### many at once
for i in 1 2 3 4; do (engine run --rm box echo $i >$dir/$i) & done
wait
eq "$(cat $dir/1 $dir/2 $dir/3 $dir/4 | tr -d '\n')" 1234

### a container's process is killed from the host
engine run -d --name $n box sleep 1000
kill -9 $(field $n .State.Pid)
eq "$(engine wait $n)" 137

### --oom-score-adj, --ulimit core, --label, --cidfile
engine run --name $n --oom-score-adj 100 --label a=b --cidfile $dir/cid box true
[ -s $dir/cid ]

### -P and EXPOSE
engine run -d --name $n --expose 8080 -P box testprog serve 8080
port=$(engine port $n 8080/tcp | head -1 | sed 's/.*://')
soon is hello busybox wget -qO- http://127.0.0.1:$port/hello

### IPv6
engine network create --ipv6 --subnet fd00:77:$net::/64 $n-net
engine run -d --name $n --network $n-net box testprog serve 8080
ip=$(engine exec $n ip -6 addr show eth0 | awk '/fd00/ {sub("/.*", "", $2); print $2}')
soon is hello engine run --rm --network $n-net box wget -qO- "http://[$ip]:8080/hello"

### a program that the kernel refuses
printf '\177ELFnonsense' >$dir/bad
chmod +x $dir/bad
engine create --name $n -v $dir/bad:/bad box /bad
# runc may find out after start has succeeded.
if engine start $n; then
	soon is false engine inspect -f '{{.State.Running}}' $n
	[ "$(field $n .State.ExitCode)" != 0 ]
fi
engine rm $n

### exec of what is not there
engine run -d --name $n box sleep 1000
# 126 before Docker 23.
code 12[67] engine exec $n nosuchprogram
code 12[67] engine exec $n /no/such/program
code 126 engine exec $n /etc/passwd
code 127 engine exec $n sh -c 'nosuchprogram'
code 137 engine exec $n sh -c 'kill -9 $$'

### run of what is not there
code 127 engine run --rm box nosuchprogram
has "$out" "executable file not found in"
code 126 engine run --rm box /etc
code 127 engine run --rm --entrypoint /no/such box

### --stop-timeout
# The usual 10 s would be too short for this one to end by itself.
engine run -d --name $n --stop-timeout 60 box sh -c 'trap "sleep 12; exit 3" TERM; echo >/ready; while :; do sleep 0.1; done'
soon engine exec $n test -e /ready
engine stop $n
eq "$(field $n .State.ExitCode)" 3

### --userns host
eq "$(engine run --rm --userns host box id -u)" 0

### -v with a label
mkdir $dir/d
engine run --rm -v $dir/d:/d:z box touch /d/x
engine run --rm -v $dir/d:/d:ro,Z box test -e /d/x

### apparmor and seccomp unconfined
engine run --rm --security-opt apparmor=unconfined --security-opt seccomp=unconfined box true
has "$(engine run --rm --security-opt seccomp=unconfined box cat /proc/self/status)" "Seccomp:	0"

### --cap-add ALL and --cap-drop ALL
has "$(engine run --rm --cap-drop ALL box cat /proc/self/status)" "CapEff:	0000000000000000"
engine run --rm --cap-drop ALL --cap-add CHOWN box chown 1 /tmp

### --cpuset-cpus, --memory-swap, --memory-reservation
eq "$(engine run --rm --cpuset-cpus 0 box nproc)" 1
engine run --rm --memory 128m --memory-swap 256m --memory-reservation 64m box true

### --device of a block device
head -c 1048576 /dev/zero >$dir/disk
printf first >$dir/disk.head
dd if=$dir/disk.head of=$dir/disk conv=notrunc 2>/dev/null
loop=$(losetup -f --show $dir/disk)
trap 'losetup -d $loop' EXIT
eq "$(engine run --rm --device $loop:/dev/mydisk box head -c 5 /dev/mydisk)" first
engine run --rm --device $loop:/dev/mydisk box sh -c 'printf guest | dd of=/dev/mydisk conv=notrunc,fsync'
eq "$(head -c 5 $loop)" guest
engine run --rm --device $loop:/dev/mydisk:r box sh -c 'printf x >/dev/mydisk' && exit 1
true

### -p of more than one
engine run -d --name $n -p 127.0.0.1::8080 -p 127.0.0.1::8080/udp -p 127.0.0.1::8081 box testprog serve 8080
eq "$(engine port $n | wc -l)" 3
port=$(engine port $n 8080/tcp | head -1 | sed 's/.*://')
soon is hello busybox wget -qO- http://127.0.0.1:$port/hello

### restart policy always
engine run -d --name $n --restart always box sh -c 'echo x >>/log; sleep 1000'
soon is 1 sh -c "engine exec $n cat /log | wc -l"
kill -9 $(field $n .State.Pid)
soon is 2 sh -c "engine exec $n cat /log | wc -l"
engine stop -t 1 $n
eq "$(field $n .State.Running)" false

### wait for one that runs
engine run -d --name $n box sh -c 'sleep 2; exit 9'
eq "$(engine wait $n)" 9

### what is written is there when the container has ended
for i in 1 2 3; do
	engine run --rm -v $dir:/d box sh -c "echo $i >/d/f; dd if=/dev/zero of=/d/g bs=1k count=$i" 2>/dev/null
	eq "$(cat $dir/f)" $i
	eq "$(stat -c %s $dir/g)" $((i * 1024))
done

### 100 MB in, many times (long)
head -c 100000000 /dev/urandom >$dir/in
sum=$(sha256sum <$dir/in)
for _ in $(seq $repeats); do eq "$(cat $dir/in | engine run -i --rm box sha256sum)" "$sum"; done

### 100 MB out, many times (long)
head -c 100000000 /dev/urandom >$dir/in
sum=$(sha256sum <$dir/in)
for _ in $(seq $repeats); do eq "$(engine run --rm -v $dir/in:/in box cat /in | sha256sum)" "$sum"; done

### a pipeline that ends early, many times (long)
# With whom it has talked gone, the container goes on.
for i in $(seq $repeats); do
	eq "$(timeout 60 engine run --name $n-$i box sh -c 'while :; do echo line; done' | head -1)" line
	engine rm -f $n-$i >/dev/null
done

### logs are complete, many times (long)
for i in $(seq $repeats); do
	engine run --name $n-$i box sh -c 'i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; printf last' >$dir/out
	eq "$(wc -l <$dir/out)" 500
	eq "$(tail -c 4 $dir/out)" last
	eq "$(engine logs $n-$i | cksum)" "$(cksum <$dir/out)"
	engine rm $n-$i >/dev/null
done
