### nginx under load
engine run -d --name $n -p 127.0.0.1:$((20000+net)):80 debian nginx -g 'daemon off;'
url=http://127.0.0.1:$((20000+net))
soon curl -fs $url/
engine exec $n sh -c 'head -c 300000 /dev/urandom >/var/www/html/big; sha256sum </var/www/html/big' >$dir/sum
eq "$(curl -fs $url/big | sha256sum)" "$(cat $dir/sum)"
# Four at once, on one connection each, and each page whole.
for i in 1 2 3 4; do curl -fs -o /dev/null -w '%{http_code} %{size_download}\n' "$url/big?[1-75]" >$dir/load.$i & done
wait
eq "$(sort $dir/load.* | uniq -c | xargs)" "300 200 300000"
for i in 1 2 3 4; do seq 15 | while read -r _; do curl -fs -o /dev/null -w '%{http_code}\n' $url/; done >$dir/new.$i & done
wait
eq "$(sort $dir/new.* | uniq -c | xargs)" "60 200"
# A socket of its own, new workers, the log on disk.
engine exec $n sh -c 'printf "server { listen unix:/var/run/own.sock; location / { return 200 own; } }\n" >/etc/nginx/conf.d/own.conf; nginx -s reload'
soon engine exec $n curl -fs --unix-socket /var/run/own.sock http://x/
eq "$(engine exec $n curl -fs --unix-socket /var/run/own.sock http://x/)" own
engine cp $n:/var/log/nginx/access.log $dir/log
[ "$(wc -l <$dir/log)" -ge 361 ]
engine stop $n
eq "$(field $n .State.ExitCode)" 0

### postgresql
# The data is in a volume, the socket in the root file system.
engine volume create $n >/dev/null
cat >$dir/start.sh <<'SH'
set -eu
chown postgres: /data
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
PATH=$PATH:/usr/lib/postgresql/15/bin
[ -s /data/PG_VERSION ] || as initdb -D /data -N --no-locale -E UTF8 >/dev/null
exec setpriv --reuid postgres --regid postgres --clear-groups postgres -D /data
SH
engine run -d --name $n -v $n:/data -v $dir/start.sh:/start.sh:ro debian sh /start.sh
sql() { engine exec -u postgres $n psql -qAt postgres -c "$1"; }
ready() { sql 'select 1'; }
for _ in $(seq 600); do ! ready >/dev/null 2>&1 || break; sleep 0.5; done
has "$(engine exec $n ls -l /var/run/postgresql/.s.PGSQL.5432)" srwxrwxrwx
engine exec -u postgres $n /usr/lib/postgresql/15/bin/pgbench -q -i -s 1 postgres
out=$(engine exec -u postgres $n /usr/lib/postgresql/15/bin/pgbench -c 4 -t 25 postgres)
has "$out" "transactions actually processed: 100/100"
sql 'create table kept(i int); insert into kept select generate_series(1, 1000)'
# Killed while it works: nothing that was committed is lost, and the sums agree.
engine exec -u postgres $n /usr/lib/postgresql/15/bin/pgbench -c 4 -T 60 postgres >/dev/null 2>&1 &
soon eval '[ "$(sql "select count(*) from pgbench_history")" -gt 120 ]'
before=$(sql 'select count(*) from pgbench_history')
engine kill $n
wait
engine start $n
for _ in $(seq 600); do ! ready >/dev/null 2>&1 || break; sleep 0.5; done
has "$(engine logs $n 2>&1)" "automatic recovery in progress"
eq "$(sql 'select count(*), sum(i) from kept')" "1000|500500"
[ "$(sql 'select count(*) from pgbench_history')" -ge "$before" ]
eq "$(sql 'select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers), (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches)')" "t|t"
eq "$(sql 'select count(*) from pgbench_accounts')" 100000
engine stop -t 60 -s INT $n 2>/dev/null || engine stop -t 60 $n
# From outside: the volume holds a cluster that was shut down.
where=$(engine volume inspect -f '{{.Mountpoint}}' $n)
eq "$(cat $where/PG_VERSION)" 15

### redis with an append-only file
engine volume create $n >/dev/null
engine run -d --name $n -p 127.0.0.1:$((21000+net)):6379 -v $n:/data debian sh -c 'mkdir -p /run/redis
	exec redis-server --dir /data --appendonly yes --appendfsync always --unixsocket /run/redis/redis.sock --unixsocketperm 777 --bind 0.0.0.0 --protected-mode no'
cli() { engine exec $n redis-cli -s /run/redis/redis.sock "$@"; }
soon is PONG cli ping
engine exec $n sh -c 'for i in $(seq 500); do echo set key-$i value-$i; done | redis-cli -s /run/redis/redis.sock' | sort | uniq -c | grep -q '500 OK'
out=$(engine exec $n redis-benchmark -s /run/redis/redis.sock -q -n 500 -c 10 -t set,lpush)
has "$out" LPUSH
eq "$(cli bgrewriteaof)" "Background append only file rewriting started"
soon eval 'cli info persistence | tr -d "\r" | grep -qx aof_rewrite_in_progress:0'
eq "$(cli set last one)" OK
engine kill $n
engine start $n
soon is PONG cli ping
eq "$(cli get key-500)" value-500
eq "$(cli get last)" one
# From outside, by its own protocol.
exec 8<>/dev/tcp/127.0.0.1/$((21000+net))
printf 'GET key-7\r\n' >&8
read -r -t 20 length <&8
read -r -t 20 value <&8
eq "${value%$'\r'}" value-7
exec 8>&-
eq "$(cli bgsave)" "Background saving started"
soon test -s "$(engine volume inspect -f '{{.Mountpoint}}' $n)/dump.rdb"
engine stop $n
eq "$(field $n .State.ExitCode)" 0

### git
git init -q --bare -b main $dir/origin
git -c init.defaultBranch=main init -q $dir/seed
( cd $dir/seed; for i in $(seq 60); do mkdir -p d$((i % 7)); seq $i 500 >d$((i % 7))/f$i; done; git add .; git -c user.name=a -c user.email=a@b commit -qm seed; git push -q ../origin HEAD:main )
engine run --rm -v $dir/origin:/origin debian sh -c '
	set -eu
	git config --global --add safe.directory "*"
	git config --global user.name c; git config --global user.email c@d
	git clone -q file:///origin /work
	cd /work
	git fsck --strict
	test "$(git ls-files | wc -l)" = 60
	git status --porcelain | wc -l | grep -qx 0
	echo changed >>d1/f1; git mv d2/f2 d3/moved; rm d4/f4
	git commit -qam "from inside"
	git gc -q
	git push -q
	git clone -q --local /work /again
	git -C /again log --format=%s'  >$dir/out
eq "$(cat $dir/out)" "from inside
seed"
git --git-dir $dir/origin fsck --strict
eq "$(git --git-dir $dir/origin log -1 --format=%s)" "from inside"
eq "$(git --git-dir $dir/origin show main:d1/f1 | tail -1)" changed

### python http server
mkdir $dir/www
head -c 1000000 /dev/urandom >$dir/www/file
engine network create $n
engine run -d --name $n --network $n -v $dir/www:/www:ro -w /www -p 127.0.0.1:$((22000+net)):8000 debian python3 -u -m http.server
soon curl -fs http://127.0.0.1:$((22000+net))/
eq "$(curl -fs http://127.0.0.1:$((22000+net))/file | sha256sum)" "$(sha256sum <$dir/www/file)"
eq "$(engine run --rm --network $n debian sh -c "curl -fs http://$n:8000/file | sha256sum")" "$(sha256sum <$dir/www/file)"
has "$(engine logs $n 2>&1)" '"GET /file HTTP/1.1" 200'
# What it offers changes as the host changes it.
echo new >$dir/www/new
eq "$(curl -fs http://127.0.0.1:$((22000+net))/new)" new

### python uses files and processes
engine run --rm debian python3 -c '
import multiprocessing, os, sqlite3, subprocess, tempfile, threading, socket, mmap, fcntl
db = sqlite3.connect("/var/tmp/a.db")
assert db.execute("pragma journal_mode=wal").fetchone()[0] == "wal"
db.execute("create table t(i integer)")
def add(n):
    c = sqlite3.connect("/var/tmp/a.db", timeout=60)
    for i in range(20):
        with c: c.execute("insert into t values(?)", (n,))
ps = [multiprocessing.Process(target=add, args=(n,)) for n in range(3)]
[p.start() for p in ps]; [p.join() for p in ps]
assert db.execute("select count(*), sum(i) from t").fetchone() == (60, 60)
assert db.execute("pragma integrity_check").fetchone()[0] == "ok"
db.close()
with tempfile.NamedTemporaryFile() as f:
    f.write(b"0123456789"); f.flush(); f.truncate(4)
    assert os.stat(f.name).st_size == 4
m = multiprocessing.Manager().dict(); m["a"] = 1
assert m["a"] == 1
assert subprocess.run(["ls", "/etc/passwd"], capture_output=True).stdout == b"/etc/passwd\n"
print("fine")' >$dir/out
eq "$(cat $dir/out)" fine

### apt installs a package
# From a repository of the test's own: its network leads nowhere else.
( cd $software/repository && exec python3 -m http.server $((23000+net)) >/dev/null 2>&1 ) &
server=$!
trap 'kill $server' EXIT
engine run --name $n debian sh -c "
	set -eu
	rm -f /etc/apt/sources.list /etc/apt/sources.list.d/*
	gateway=\$(ip route | awk '/default/ {print \$3}')
	echo \"deb [trusted=yes] http://\$gateway:$((23000+net)) ./\" >/etc/apt/sources.list
	apt-get -q update
	apt-get -q install -y tree
	dpkg -V tree
	tree --version
	apt-get -q purge -y tree
	apt-get -q install -y tree" >$dir/out 2>&1 || { cat $dir/out; exit 1; }
has "$(cat $dir/out)" "tree v2"
# From outside.
engine cp $n:/usr/bin/tree $dir/tree
has "$(engine diff $n)" "A /usr/bin/tree"
engine cp $n:/var/lib/dpkg/status $dir/status
has "$(grep -A1 '^Package: tree$' $dir/status)" "install ok installed"

### go build
# The toolchain is the host's, with what it has compiled before: compiling the
# standard library emulated takes minutes.
goroot=$(go env GOROOT)
mkdir -p $dir/src/words $dir/cache
cat >$dir/src/go.mod <<'GO'
module example.org/hello

go 1.21
GO
cat >$dir/src/main.go <<'GO'
package main

import (
	"fmt"
	"os"

	"example.org/hello/words"
)

func main() { fmt.Println(words.Upper(os.Args[1])) }
GO
cat >$dir/src/words/words.go <<'GO'
// Package words changes words.
package words

import "strings"

// Upper is strings.ToUpper.
func Upper(s string) string { return strings.ToUpper(s) }
GO
build="GOTOOLCHAIN=local GOFLAGS='-buildvcs=false -trimpath' GOPROXY=off CGO_ENABLED=0"
( cd $dir/src && eval "$build GOCACHE=$dir/cache go build fmt os strings" )
engine run --rm -v $goroot:$goroot:ro -v $dir/cache:/cache -v $dir/src:/src -w /src debian sh -c "
	export HOME=/root GOCACHE=/cache $build
	$goroot/bin/go build -o /src/hello . && /src/hello inside && $goroot/bin/go env GOOS" >$dir/out
eq "$(cat $dir/out)" "INSIDE
linux"
eq "$($dir/src/hello outside)" OUTSIDE

### node
cat >$dir/server.js <<'JS'
const http = require("http"), fs = require("fs"), { Worker } = require("worker_threads"), net = require("net")
fs.mkdirSync("/watched")
let seen = ""
// Held open: in the guest, a directory that nothing holds is forgotten, and the watch with it.
fs.openSync("/watched")
fs.watch("/watched", (event, name) => { seen = name })
net.createServer(c => c.end("from a socket")).listen("/var/run/node.sock", () =>
  http.createServer((req, res) => {
    if (req.url == "/watch") { fs.writeFileSync("/watched/file", "x"); setTimeout(() => res.end(seen), 500) }
    else if (req.url == "/worker") new Worker("require('worker_threads').parentPort.postMessage(6 * 7)", { eval: true }).on("message", m => res.end(String(m)))
    else if (req.url == "/socket") net.connect("/var/run/node.sock").on("data", d => res.end(d))
    else res.end("hello from node")
  }).listen(8080))
process.on("SIGTERM", () => process.exit(7))
JS
engine run -d --name $n -p 127.0.0.1:$((24000+net)):8080 -v $dir/server.js:/server.js:ro debian node /server.js
url=http://127.0.0.1:$((24000+net))
soon is "hello from node" curl -fs $url/
eq "$(curl -fs $url/worker)" 42
eq "$(curl -fs $url/watch)" file
eq "$(curl -fs $url/socket)" "from a socket"
engine stop -t 30 $n
eq "$(field $n .State.ExitCode)" 7

### gpg-agent and supervisors with sockets beside their data
engine run --rm debian sh -c '
	set -eu
	mkdir -m 700 /root/keys
	cd /root/keys
	python3 - <<PY
import asyncio, os
async def main():
    async def serve(r, w):
        w.write(b"echo " + await r.readline()); await w.drain(); w.close()
    await asyncio.start_unix_server(serve, "/root/keys/S.agent")
    os.chmod("/root/keys/S.agent", 0o700)
    r, w = await asyncio.open_unix_connection("/root/keys/S.agent")
    w.write(b"hello\n")
    print((await r.read()).decode(), end="")
asyncio.run(main())
PY
	stat -c "%F %a" S.agent
	mkfifo -m 640 pipe; (echo through >pipe &); cat pipe; stat -c "%F %a" pipe' >$dir/out
eq "$(cat $dir/out)" "echo hello
socket 700
through
fifo 640"

### systemd as the first process
# runc's would work on the cgroups and the kernel of the host.
eq $runtime husk
# Without a cgroup namespace, systemd takes PostgreSQL for another service's.
engine run -d --name $n --cgroupns private --cap-add ALL --security-opt seccomp=unconfined --tmpfs /run --tmpfs /tmp -e container=docker -p 127.0.0.1:$((25000+net)):80 \
	debian sh -c 'mount -o remount,rw /sys/fs/cgroup && exec /sbin/init'
up() { is "active active active active" eval "engine exec $n systemctl is-active nginx redis-server systemd-journald postgresql@15-main | xargs"; }
for _ in $(seq 200); do ! up >/dev/null 2>&1 || break; sleep 0.5; done
up
eq "$(engine exec $n cat /proc/1/comm)" systemd
has "$(curl -fs http://127.0.0.1:$((25000+net))/)" nginx
engine exec $n systemctl stop nginx
! curl -fs -m 10 http://127.0.0.1:$((25000+net))/ || exit 1
has "$(engine exec $n journalctl --no-pager -u nginx)" "Stopped nginx.service"
engine kill -s SIGRTMIN+3 $n
soon is false field $n .State.Running

### docker in docker
# runc's would work on the cgroups and the network of the host.
eq $runtime husk
engine volume create $n >/dev/null
engine run -d --name $n --privileged -v $n:/var/lib/docker debian dockerd
for _ in $(seq 120); do ! engine exec $n docker version >/dev/null 2>&1 || break; sleep 0.5; done
inner() { engine exec $n docker "$@"; }
engine exec $n sh -c 'mkdir -p /tree/bin && cp /bin/busybox /tree/bin && ln -s busybox /tree/bin/sh && tar -C /tree -c . | docker import - box' >/dev/null
eq "$(inner run --rm box /bin/busybox echo from inside)" "from inside"
inner run -d --name web -p 8080:80 box /bin/sh -c 'echo page >/index.html; exec /bin/busybox httpd -f -p 80 -h /' >/dev/null
soon is page engine exec $n curl -fs http://127.0.0.1:8080/index.html
has "$(engine exec $n iptables -t nat -S)" "--dport 8080 -j DNAT"
eq "$(inner exec web /bin/busybox id -u)" 0
inner rm -f web >/dev/null
engine exec $n sh -c 'nft add table ip mine && nft add chain ip mine out "{ type filter hook output priority 0; }" && nft list tables' >$dir/tables
has "$(cat $dir/tables)" "table ip mine"
