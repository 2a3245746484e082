### --log-driver none
engine run -d --name $n --log-driver none box sh -c 'echo x; sleep 1000'
engine logs $n && exit 1
true

### network connect and disconnect while running
engine network create $n-net
engine run -d --name $n box sleep 1000
engine run -d --name $n-peer --network $n-net box testprog serve 8080
engine network connect $n-net $n
# At once: who connects a container and then runs something in it finds the network.
eq "$(engine exec $n ls /sys/class/net | grep -c eth)" 2
soon is hello engine exec $n wget -qO- http://$n-peer:8080/hello
engine network disconnect $n-net $n
eq "$(engine exec $n ls /sys/class/net | grep -c eth1)" 0
# A card that has become free serves again.
for _ in 1 2 3; do
	engine network disconnect bridge $n
	engine network connect $n-net $n
	engine network connect bridge $n
	soon is hello engine exec $n wget -qO- http://$n-peer:8080/hello
	eq "$(engine exec $n ls /sys/class/net | grep -c eth)" 2
	engine network disconnect $n-net $n
done

### build with RUN
mkdir $dir/b
printf 'FROM box\nRUN echo built >/built\nRUN uname -r >/kernel\nCMD cat /built\n' >$dir/b/Dockerfile
DOCKER_BUILDKIT=0 engine build -q -t $n-img $dir/b
eq "$(engine run --rm $n-img)" built

### --pid container
engine run -d --name $n box sleep 1234
has "$(engine run --rm --pid container:$n box ps)" "sleep 1234"

### --ipc container
engine run -d --name $n --ipc shareable box sh -c 'echo x >/dev/shm/f; sleep 1000'
soon engine exec $n test -e /dev/shm/f
eq "$(engine run --rm --ipc container:$n box cat /dev/shm/f)" x

### OOMKilled
engine run --name $n --memory 32m --memory-swap 32m box testprog memory 200 || true
soon is true engine inspect -f '{{.State.OOMKilled}}' $n

### detach keys
engine run -d -it --name $n box sh
(sleep 1; printf '\020\021') | script -qec "engine attach $n" /dev/null >$dir/out || true
has "$(cat $dir/out)" "read escape sequence"
eq "$(field $n .State.Running)" true

### containers outlive the daemon (alone)
engine run -d --name $n box sleep 1000
restart_engine
eq "$(field $n .State.Running)" true
eq "$(engine exec $n echo hello)" hello

### the shim is killed
engine run -d --name $n box sleep 1000
pid=$(field $n .State.Pid)
kill -9 $(ps -o ppid= -p $pid)
soon is 137 engine inspect -f '{{if not .State.Running}}{{.State.ExitCode}}{{end}}' $n
soon test ! -d /proc/$pid

### -w makes the directory
eq "$(engine run --rm -w /not/there/yet box pwd)" /not/there/yet

### a health check
engine run -d --name $n --health-cmd 'test -e /healthy' --health-interval 1s --health-retries 1 box sh -c 'sleep 1; touch /healthy; sleep 1000'
soon is healthy engine inspect -f '{{.State.Health.Status}}' $n

### names of the world through the engine's resolver
engine network create $n-net
engine run -d --name $n-dns --network $n-net box testprog dns 10.11.12.13
server=$(engine inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' $n-dns)
engine run -d --name $n --network $n-net --dns $server box sleep 1000
eq "$(engine exec $n awk '/^nameserver/ {print $2}' /etc/resolv.conf)" 127.0.0.11
soon engine exec $n nslookup -type=a www.example.test
has "$(engine exec $n nslookup -type=a www.example.test)" 10.11.12.13
has "$(engine exec $n nslookup -type=a $n-dns)" $server

### a container that is a DNS server finds others by name
engine network create $n-net
engine run -d --name $n --network $n-net box testprog dns 10.11.12.13
soon is listening engine logs $n
has "$(engine exec $n nslookup -type=a www.example.test 127.0.0.1)" 10.11.12.13
ip=$(engine inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' $n)
has "$(engine exec $n nslookup -type=a $n 127.0.0.11)" $ip

### --gpus
code 125 engine run --rm --gpus all box true
has "$out" "Error response from daemon: "

### the daemon is killed (alone)
engine run -d -i --name $n -p 127.0.0.1::8080 box testprog serve 8080
engine run -d --name $n-ends box sh -c 'while ! test -e /end; do sleep 0.2; done; echo last; exit 6'
restart_engine kill
eq "$(field $n .State.Running)" true
eq "$(engine exec $n echo hello)" hello
soon is hello busybox wget -qO- http://$(engine inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' $n):8080/hello
engine exec $n-ends touch /end
eq "$(engine wait $n-ends)" 6
eq "$(engine logs $n-ends)" last
engine stop -t 1 $n

### a container ends while the daemon is away (alone)
engine run -d --name $n box sleep 1000
pid=$(field $n .State.Pid)
restart_engine stop
kill -9 $pid
restart_engine
soon is 137 engine inspect -f '{{if not .State.Running}}{{.State.ExitCode}}{{end}}' $n
engine start $n
eq "$(engine exec $n echo hello)" hello

### husk install and uninstall (alone)
cp $engine_config $dir/before
trap 'cp $dir/before $engine_config; restart_engine reload' EXIT
printf '#!/bin/sh\nexec %s --config %s "$@"\n' $husk $settings >$dir/husk
chmod +x $dir/husk
install_husk() { $husk install --file $engine_config --binary $dir/husk docker; }
has "$(install_husk)" "changed $engine_config"
restart_engine reload
soon sh -c "engine info -f '{{json .Runtimes}}' | grep -q '\"husk\":'"
has "$(engine run --rm --runtime husk box cat /proc/cpuinfo)" hypervisor
[ "$(engine run --rm --runtime husk box cat /proc/sys/kernel/random/boot_id)" != "$(cat /proc/sys/kernel/random/boot_id)" ]
has "$(install_husk)" "nothing to do"
$husk uninstall --file $engine_config docker
restart_engine reload
soon sh -c "! engine info -f '{{json .Runtimes}}' | grep -q '\"husk\":'"
code 125 engine run --rm --runtime husk box true
eq "$(tr -d ' \t\n' <$engine_config)" "$(tr -d ' \t\n' <$dir/before)"
