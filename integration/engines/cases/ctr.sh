### exit codes
for c in 0 1 42; do code $c engine run --rm box $n sh -c "exit $c"; done

### a program that is not there
engine run --rm box $n /no/such/program >$dir/out 2>&1 && exit 1
has "$(cat $dir/out)" "no such file or directory"
engine run --rm box $n nosuchprogram >$dir/out 2>&1 && exit 1
has "$(cat $dir/out)" "executable file not found in"
engine run --rm box $n /etc/passwd >$dir/out 2>&1 && exit 1
has "$(cat $dir/out)" "permission denied"

### stdout and stderr
eq "$(engine run --rm box $n sh -c 'echo out; echo err >&2' 2>/dev/null)" out
# containerd 2 has a word to say of cgroup v1.
eq "$(engine run --rm box $n sh -c 'echo out; echo err >&2' 2>&1 >/dev/null | grep -v level=warning)" err

### stdin
# An end that comes before the task has begun is lost by ctr itself.
eq "$( (echo hello; soon has_status $n RUNNING >&2) | engine run --rm box $n cat)" hello
eq "$( (head -c 3000000 /dev/zero; soon has_status $n RUNNING >&2) | engine run --rm box $n wc -c)" 3000000

### a terminal
out=$(script -qec "engine run --rm -t box $n sh -c 'tty; echo done'" /dev/null </dev/null | tr -d '\r')
has "$out" /dev/pts/0
has "$out" done

### -d, tasks ls and ps
engine run -d box $n sleep 1234
has "$(engine task ls | grep "^$n ")" RUNNING
pid=$(engine task ls | awk -v n=$n '$1 == n {print $2}')
[ -d /proc/$pid ]
has "$(tr '\0' ' ' </proc/$pid/cmdline)" "sleep 1234"
has "$(engine task ps $n)" $pid
engine task kill -s KILL $n
soon test ! -d /proc/$pid
has "$(engine task ls | grep "^$n ")" STOPPED

### a task that is killed
engine run -d box $n sleep 1000
engine task kill -s KILL $n
soon has_status $n STOPPED
engine task rm $n >/dev/null 2>&1 || true # its exit code is the task's
has_no_task $n

### kill with a signal that the container handles
engine run -d box $n sh -c 'trap "exit 5" USR1; echo >/ready; while :; do sleep 0.1; done'
soon engine task exec --exec-id $n-e $n test -e /ready
engine task kill -s USR1 $n
soon has_status $n STOPPED

### exec
engine run -d box $n sleep 1000
eq "$(engine task exec --exec-id $n-1 $n echo hello)" hello
code 42 engine task exec --exec-id $n-2 $n sh -c 'exit 42'
engine task exec --exec-id $n-3 $n /no/such/program && exit 1
eq "$( (echo in; sleep 2) | engine task exec --exec-id $n-4 $n cat)" in
eq "$(engine task exec --exec-id $n-5 --user 12:34 --cwd /tmp $n sh -c 'id -u; id -g; pwd')" "12
34
/tmp"

### exec -t
engine run -d box $n sleep 1000
out=$(script -qec "engine task exec -t --exec-id $n-1 $n sh -c 'tty; echo done'" /dev/null </dev/null | tr -d '\r')
has "$out" /dev/pts/
has "$out" done

### exec -d
engine run -d box $n sleep 1000
engine task exec -d --exec-id $n-1 $n sh -c 'echo x >/made; sleep 1000'
soon engine task exec --exec-id $n-2 $n test -e /made
has "$(engine task ps $n)" $n-1
engine task kill --exec-id $n-1 -s KILL $n

### exec in what has stopped
engine run -d box $n true
soon has_status $n STOPPED
engine task exec --exec-id $n-1 $n true && exit 1
true

### pause and resume
engine run -d box $n sleep 1000
engine task pause $n
has "$(engine task ls | grep "^$n ")" PAUSED
engine task exec --exec-id $n-1 $n true && exit 1
engine task resume $n
has "$(engine task ls | grep "^$n ")" RUNNING
engine task exec --exec-id $n-2 $n true

### metrics
engine run -d box $n sleep 1000
has "$(engine task metrics $n)" $n

### rm of what runs
engine run -d box $n sleep 1000
engine task rm $n && exit 1
engine task rm -f $n
engine container rm $n

### start again
engine run -d box $n sh -c 'echo run >>/log'
soon has_status $n STOPPED
engine task rm $n
engine task start -d $n
soon has_status $n STOPPED

### attach
engine run -d box $n sh -c 'trap "exit 3" USR1; while :; do sleep 0.1; done'
(sleep 2; engine task kill -s USR1 $n) &
code 3 timeout 30 engine task attach $n </dev/null

### --env --cwd --label
mkdir $dir/d
# Not through a pipe: ctr of containerd 1.6 has lost all of such an output, with runc.
engine run --rm --env A=1 --env 'B=two words' --cwd /tmp --mount type=bind,src=$dir/d,dst=/d,options=rbind:rw \
	box $n sh -c 'echo $A $B >/d/said; pwd >>/d/said'
eq "$(cat $dir/d/said)" "1 two words
/tmp"
engine run --rm --label a=b box $n true

### --user
engine run --help | grep -q -- '--user' || exit 0 # not in 1.6
eq "$(engine run --rm --user user box $n id -u)" 1000
eq "$(engine run --rm --user 12:34 box $n sh -c 'id -u; id -g')" "12
34"

### --read-only
code 1 engine run --rm --read-only box $n touch /x

### --mount
mkdir $dir/d
echo host >$dir/d/f
eq "$(engine run --rm --mount type=bind,src=$dir/d,dst=/d,options=rbind:rw box $n sh -c 'cat /d/f; echo guest >/d/g')" host
eq "$(cat $dir/d/g)" guest
code 1 engine run --rm --mount type=bind,src=$dir/d,dst=/d,options=rbind:ro box $n touch /d/x
has "$(engine run --rm --mount type=tmpfs,src=tmpfs,dst=/t,options=size=1m box $n df -k /t)" 1024

### --cap-add and --cap-drop
code 1 engine run --rm --cap-drop CAP_CHOWN box $n chown 1 /tmp
engine run --rm --cap-add CAP_NET_ADMIN box $n ip link set lo down

### --privileged
engine run --rm --privileged box $n sh -c 'mkdir /m && mount -t tmpfs x /m'

### --seccomp
has "$(engine run --rm --seccomp box $n cat /proc/self/status)" "Seccomp:	2"
has "$(engine run --rm box $n cat /proc/self/status)" "Seccomp:	0"

### no new privileges
has "$(engine run --rm box $n cat /proc/self/status)" "NoNewPrivs:	1"
has "$(engine run --rm --allow-new-privs box $n cat /proc/self/status)" "NoNewPrivs:	0"

### --memory-limit and --cpus
engine run --rm --memory-limit 67108864 --cpus 0.5 box $n true

### out of memory
code 137 engine run --memory-limit 33554432 box $n testprog memory 200

### --device
engine run --rm --device /dev/null box $n sh -c 'echo x >/dev/null'

### --pid-file
engine run -d --pid-file $dir/pid box $n sleep 1000
[ -d /proc/$(cat $dir/pid) ]

### --rootfs
mkdir $dir/root
# Not through a pipe: ctr of containerd 2 now and then leaves off before the end.
engine run --rm --mount type=bind,src=$dir/root,dst=/mnt,options=rbind:rw box $n cp -a /bin /etc /mnt
mkdir $dir/root/proc $dir/root/sys $dir/root/dev $dir/root/tmp $dir/root/run
code 3 engine run --rm --rootfs $dir/root $n-2 /bin/sh -c 'echo x >/made; exit 3'
[ -e $dir/root/made ]

### --net-host
engine run --rm --net-host box $n ls /sys/class/net

### --with-ns network
eq "$(engine run --rm box $n ls /sys/class/net)" lo
ip netns add $n
ip -n $n link set lo up
ip link add v$net type veth peer name eth7 netns $n
ip -n $n addr add 10.78.$net.2/24 dev eth7
ip -n $n link set eth7 up
has "$(engine run --rm --with-ns network:/run/netns/$n box $n-2 ip addr)" 10.78.$net.2/24
ip netns del $n

### --null-io
engine run -d --null-io box $n sh -c 'echo x; sleep 1000'
has_status $n RUNNING

### --log-uri
engine run -d --log-uri file://$dir/log box $n sh -c 'echo one; echo two; sleep 1000'
soon is "one
two" cat $dir/log

### events
timeout 60 bash -c "exec engine events" >$dir/events &
watcher=$!
soon engine run --rm box $n true
soon grep -q "/tasks/exit" $dir/events
soon grep -q "/tasks/delete" $dir/events
kill $watcher

### a large stream through
sum=$(head -c 30000000 /dev/urandom | tee $dir/in | sha256sum)
eq "$(engine run --rm box $n sha256sum <$dir/in)" "$sum"

### many at once
for i in 1 2 3 4; do (engine run --rm box $n-$i echo $i >$dir/$i) & done
wait
eq "$(cat $dir/1 $dir/2 $dir/3 $dir/4 | tr -d '\n')" 1234

### a container's process is killed from the host
engine run -d --pid-file $dir/pid box $n sleep 1000
kill -9 $(cat $dir/pid)
soon has_status $n STOPPED

### the shim is killed
engine run -d --pid-file $dir/pid box $n sleep 1000
pid=$(cat $dir/pid)
kill -9 $(ps -o ppid= -p $pid)
soon test ! -d /proc/$pid
soon has_no_task $n

### containers outlive the daemon (alone)
engine run -d box $n sleep 1000
restart_engine
has_status $n RUNNING
eq "$(engine task exec --exec-id $n-1 $n echo hello)" hello

### a checkpoint
engine run -d box $n sleep 1000
engine task checkpoint $n && exit 1
has_status $n RUNNING

### husk install and uninstall
printf 'version = 2\n[metrics]\n  address = ""\n' >$dir/config.toml
cp $dir/config.toml $dir/before
has "$($husk install --file $dir/config.toml --binary $husk containerd)" "changed $dir/config.toml"
has "$(containerd_here -c $dir/config.toml config dump)" "BinaryName = "
has "$(containerd_here -c $dir/config.toml config dump | grep BinaryName)" $husk
has "$($husk install --file $dir/config.toml --binary $husk containerd)" "nothing to do"
$husk uninstall --file $dir/config.toml containerd
cmp $dir/config.toml $dir/before
