#!/bin/bash
# dump.sh VERSION CRIU...: dumps the programs of this directory with CRIU.
# Run as root from /opt/sets, which holds the three programs, on a machine with
# a kernel that the CRIU knows. The sets come to /opt/sets/out/VERSION.
cd /opt/sets; exec 2>&1
# CRIU refuses to dump files on mounts it cannot see: inherit none.
for f in /proc/$$/fd/*; do n=${f##*/}; [ $n -gt 2 ] && [ $n != 255 ] && eval "exec $n>&-"; done
out=$PWD/out/$1; shift; criu=("$@")
rm -rf $out; mkdir -p $out/counter $out/pty $out/zoo $out/ns $out/w; cd $out/w
ready() { for i in $(seq 100); do [ -e "$1" ] && return; sleep 0.1; done; }
dump() { d=$1; shift; "${criu[@]}" dump -D $out/$d -o dump.log -v4 "$@" && echo $d ok || { echo $d FAILED; grep Error $out/$d/dump.log; }; }
setsid env -i /opt/sets/counter < /dev/null > count.txt 2>&1 &
sleep 2.5; dump counter -t $(pgrep -nx counter)
env -i /opt/sets/ptyrun ptypid /opt/sets/counter
sleep 1.5; dump pty -j -t $(cat ptypid); pkill -KILL -x counter
mkdir z; setsid env -i /opt/sets/zoo z < /dev/null > /dev/null 2>&1 &
ready z/ready; dump zoo -t $(pgrep -ox zoo) --file-locks --link-remap; pkill -KILL -x zoo
mkdir y; unshare -i -u -f setsid env -i /opt/sets/zoo y x < /dev/null > /dev/null 2>&1 &
ready y/ready; dump ns -t $(pgrep -ox zoo) --file-locks --link-remap; pkill -KILL -x zoo
true
