### docker compose
cat >$dir/compose.yaml <<'Y'
services:
  web:
    image: box
    command: testprog front 8080 cache:6379 db:5432
    ports: ["8080"]
    depends_on:
      db: {condition: service_healthy}
      cache: {condition: service_started}
  cache:
    image: box
    command: testprog store 6379
    networks: {default: {aliases: [memory]}}
  db:
    image: box
    command: testprog store 5432 /data/count
    environment: {ROLE: db}
    volumes: ["data:/data"]
    restart: always
    healthcheck: {test: ["CMD", "testprog", "ask", "127.0.0.1:5432", "GET"], interval: 1s, timeout: 20s, retries: 20}
volumes: {data: {}}
Y
compose() { engine compose -p $n -f $dir/compose.yaml "$@"; }
visit() { busybox wget -qO- http://127.0.0.1:$(compose port ${2:-web} 8080 | sed 's/.*://')/ | cut -d' ' -f2-; }
compose up -d
soon is "1 1" visit
eq "$(visit)" "2 2"
has "$(compose ps)" healthy
has "$(compose exec -T web nslookup -type=a db)" "$(engine inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' $n-db-1)"
eq "$(compose exec -T web testprog ask memory:6379 GET)" 2
eq "$(compose exec -T db sh -c 'echo $ROLE')" db

# What is in a volume outlives its container, what is in memory does not.
compose restart -t 1 cache
kill -9 $(field $n-db-1 .State.Pid)
soon is "1 3" visit
eq "$(field $n-db-1 .RestartCount)" 1

# Three answer under one name.
compose up -d --scale web=3
soon is 3 sh -c "engine exec $n-db-1 nslookup -type=a web | grep -A1 '^Name' | grep -c ^Address"
for i in 1 2 3; do soon engine exec $n-db-1 wget -qO- http://$n-web-$i:8080/; done
eq "$(compose ps -q web | wc -l)" 3

# What is gone is gone, but for the volume.
compose down -t 1
eq "$(engine ps -aq --filter label=com.docker.compose.project=$n | wc -l)" 0
eq "$(engine run --rm -v ${n}_data:/data box cat /data/count)" 6
compose down -v
eq "$(engine volume ls -q --filter name=${n}_data | wc -l)" 0
