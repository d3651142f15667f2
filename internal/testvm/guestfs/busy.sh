#!/bin/bash
# Makes a busy guest: more than a hundred processes of many kinds, all at rest. The
# last line it prints is "ready N", N processes started by it being alive.
d=/tmp/busy
mkdir -p $d
cd / || exit 1
bg() { setsid "$@" </dev/null >>$d/log 2>&1 & }

for mode in pause nanosleep read fifo pty recv futex epoll poll; do
	bg /opt/ovm/sleeper -t 0 -k 64 -o $d/$mode.0 $mode
	bg /opt/ovm/sleeper -t 3 -k 64 -o $d/$mode.3 $mode
done
bg /opt/ovm/sleeper -t 9 -k 64 -o $d/mixed mixed
for _ in $(seq 15); do bg /opt/ovm/manyfds; done
for _ in $(seq 5); do bg /opt/ovm/counter 1000; done
for _ in $(seq 15); do bg sh -c 'while :; do sleep 600; done'; done
for _ in $(seq 8); do bg sh -c 'sleep 3600 | cat | cat'; done
bg sh -c 'sh -c "sh -c \"sleep 3600; :\"; :"; :'
bg sh -c '(exit 3) & exec sleep 3600' # a zombie
bg sh -c 'kill -STOP $$'              # stopped
bg nice -n 5 sleep 3600
bg setpriv --reuid 65534 --regid 65534 --clear-groups sleep 3600
bg unshare --net --uts --ipc --mount sleep 3600
bg unshare --fork --pid --mount-proc sh -c 'sleep 3600 & wait'
bg unshare --user --map-root-user sleep 3600
mkdir -p /sys/fs/cgroup/busy
bg sh -c 'echo $$ >/sys/fs/cgroup/busy/cgroup.procs; exec sleep 3600'
bg memcached -u nobody -l 127.0.0.1 -p 11211 -m 16
bg redis-server --port 6379 --dir $d --save "" --daemonize no
bg python3 -c 'import time; x = b"python" * 100000; time.sleep(3600)'

for _ in $(seq 200); do
	n=$(pgrep -c -v -P 2,0)
	[ "$n" -ge 105 ] && [ "$(grep -c ready $d/log)" -ge 15 ] && break
	sleep 0.1
done
grep -v -E '^[0-9]+$|ready|[0-9]+:[CM]' $d/log | grep -i -E 'error|fail|manyfds|sleeper|not found'
echo "ready $n"
