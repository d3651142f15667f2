# Processes for the tests of scheduling, stacks, cgroups, namespaces and mounts.
# Run with "v1" it mounts cgroup v1 hierarchies first, as hybrid systems have them.
import os, sys, signal, time, ctypes, struct, threading, select, socket
libc = ctypes.CDLL(None, use_errno=True)
kids = []
def check(r):
    if r: raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
def mount(src, dst, typ, flags=0, data=None):
    b = lambda s: s if s is None else s.encode()
    check(libc.mount(b(src), b(dst), b(typ), flags, b(data)))
def write(path, s):
    with open(path, "w") as f: f.write(s)
def child(f, *args):
    r, w = os.pipe()
    p = os.fork()
    if p == 0:
        os.close(r)
        try:
            go = f(*args)
        except BaseException as e:
            print("zoo: failed %s: %r" % (f.__name__, e), flush=True); os._exit(1)
        os.write(w, b"x"); os.close(w)
        if go: go()
        while True: signal.pause()
    os.close(w)
    if os.read(r, 1) != b"x": print("zoo: failed", f.__name__, flush=True)
    os.close(r)
    kids.append((f.__name__, p))
    return p
def spin():
    while True: pass

BIND, REC, MOVE, PRIVATE, SLAVE, SHARED, UNBINDABLE = 4096, 16384, 8192, 1 << 18, 1 << 19, 1 << 20, 1 << 17
NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, NEWTIME = 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80
def unshare(flags): check(libc.unshare(flags))

# Scheduling.
def fifo(): os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(5))
def rr(): os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(7))
def batch(): os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0)); os.nice(3)
def idle(): os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
def nice_low(): os.nice(11)
def nice_high(): os.nice(-7)
def deadline():
    # struct sched_attr: size policy flags nice priority runtime deadline period
    check(libc.syscall(314 if os.uname().machine == "x86_64" else 274, 0, struct.pack("IIQiIQQQ", 48, 6, 0, 0, 0, 2000000, 50000000, 100000000), 0))
def spin_nice(): os.nice(19); return spin
def spin_idle(): idle(); return spin
def spin_group(): enter("zoo/deep/er", cpu=True); idle(); return spin
def spin_throttled():
    enter("zoo/throttled", cpu=True)
    if V1: write(V1 + "/cpu/zoo/throttled/cpu.cfs_quota_us", "1000"); write(V1 + "/cpu/zoo/throttled/cpu.cfs_period_us", "1000000")
    else: write("/sys/fs/cgroup/zoo/throttled/cpu.max", "1000 1000000")
    os.nice(19); return spin

# Sleeping in many places.
def threads():
    ev = threading.Event()
    for f in (ev.wait, lambda: time.sleep(1e6), lambda: select.select([], [], []), lambda: os.read(os.pipe()[0], 1)):
        threading.Thread(target=f, daemon=True).start()
    a, b = socket.socketpair()
    threading.Thread(target=lambda: a.recv(1), daemon=True).start()
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 0))
    threading.Thread(target=lambda: u.recv(1), daemon=True).start()
    t = socket.socket(); t.bind(("127.0.0.1", 0)); t.listen(1)
    threading.Thread(target=lambda: t.accept(), daemon=True).start()
    e = select.epoll(); e.register(u, select.EPOLLIN)
    threading.Thread(target=lambda: e.poll(), daemon=True).start()
    threading.Thread(target=lambda: open("/proc/self/mounts") and select.poll().poll(), daemon=True).start()
    globals()["keep"] = (a, b, u, t, e)
    time.sleep(0.2)
def waiter():
    if os.fork() == 0:
        while True: signal.pause()
    return lambda: os.wait()
def stopped(): return lambda: os.kill(os.getpid(), signal.SIGSTOP)
def locked():
    f = os.open("/tmp/locked", os.O_RDWR | os.O_CREAT); import fcntl
    fcntl.lockf(f, fcntl.LOCK_EX)
    if os.fork() == 0:
        fcntl.lockf(f, fcntl.LOCK_EX)

# Cgroups.
def enter(path, cpu=False):
    roots = ["/sys/fs/cgroup"]
    if V1: roots += [V1 + "/" + d for d in os.listdir(V1)]
    for root in roots:
        at = root
        for part in path.split("/"):
            if root == "/sys/fs/cgroup" and not V1:
                have = open(at + "/cgroup.controllers").read().split()
                write(at + "/cgroup.subtree_control", " ".join("+" + c for c in have if c in ("cpu", "memory", "pids", "cpuset", "io", "hugetlb")))
            at += "/" + part
            os.makedirs(at, exist_ok=True)
            if root == (V1 or "") + "/cpuset":
                for f in ("cpuset.cpus", "cpuset.mems"): write(at + "/" + f, open(os.path.dirname(at) + "/" + f).read())
        write(at + "/cgroup.procs", str(os.getpid()))
def limits():
    enter("zoo/limits")
    if V1:
        for f, v in {"memory/zoo/limits/memory.limit_in_bytes": "100M", "memory/zoo/limits/memory.soft_limit_in_bytes": "64M",
                     "cpu/zoo/limits/cpu.shares": "333", "cpu/zoo/limits/cpu.cfs_quota_us": "25000",
                     "pids/zoo/limits/pids.max": "44"}.items(): write(V1 + "/" + f, v)
        return
    d = "/sys/fs/cgroup/zoo/limits/"
    for f, v in {"memory.max": "200M", "memory.high": "150M", "memory.low": "10M", "memory.min": "4096", "memory.swap.max": "64M",
                 "cpu.max": "30000 90000", "cpu.weight": "333", "pids.max": "44", "cpuset.cpus": "0", "cpuset.mems": "0",
                 "hugetlb.2MB.max": "4M"}.items():
        if os.path.exists(d + f): write(d + f, v)
def frozen():
    enter("zoo/frozen")
    return lambda: V1 or write("/sys/fs/cgroup/zoo/frozen/cgroup.freeze", "1")
def frozen_v1():
    if V1:
        os.makedirs(V1 + "/freezer/zoo/cold", exist_ok=True)
        write(V1 + "/freezer/zoo/cold/cgroup.procs", str(os.getpid()))
        pid = os.getpid()
        if os.fork() == 0:
            write(V1 + "/freezer/cgroup.procs", str(os.getpid()))
            time.sleep(0.1); write(V1 + "/freezer/zoo/cold/freezer.state", "FROZEN"); os._exit(0)
def gone_group():
    enter("gone"); write("/sys/fs/cgroup/cgroup.procs", str(os.getpid()))
    if not V1: os.rmdir("/sys/fs/cgroup/gone")

# Namespaces and mounts.
def ns_all():
    unshare(NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWNET | NEWPID)
    libc.sethostname(b"zoo-all", 7); libc.setdomainname(b"zoo.example", 11)
    if os.fork() == 0:
        while True: signal.pause()
def ns_user():
    me = os.getpid()
    r, w = os.pipe(); r2, w2 = os.pipe()
    if os.fork() == 0: # maps it from outside
        os.read(r, 1)
        write("/proc/%d/uid_map" % me, "".join("%d %d 1\n" % (i, 1000 + 2 * i) for i in range(8)))
        write("/proc/%d/gid_map" % me, "0 5000 1\n7 6000 100\n")
        os.write(w2, b"x"); os._exit(0)
    unshare(NEWUSER); os.write(w, b"x"); os.read(r2, 1)
    os.setresgid(0, 0, 0); os.setresuid(3, 3, 3)
    if os.fork() == 0:
        unshare(NEWUSER | NEWUTS)
        while True: signal.pause()
def ns_time():
    unshare(NEWTIME)
    write("/proc/self/timens_offsets", "monotonic 12345 678\nboottime 7654321 99\n")
    if os.fork() == 0:
        while True: signal.pause()
def ns_bound(): # a namespace that no process is in, but a mount shows
    write("/run/bound-net", ""); write("/run/bound-uts", "")
    if os.fork() == 0:
        unshare(NEWNET | NEWUTS)
        mount("/proc/self/ns/net", "/run/bound-net", None, BIND); mount("/proc/self/ns/uts", "/run/bound-uts", None, BIND)
        os._exit(0)
    os.wait()
def ns_fd(): # … or a file descriptor holds
    r, w = os.pipe()
    p = os.fork()
    if p == 0:
        unshare(NEWIPC | NEWUTS | NEWUSER | NEWNS | NEWCGROUP | NEWTIME); os.write(w, b"x")
        while True: signal.pause()
    os.read(r, 1)
    for n in ("ipc", "uts", "user", "mnt", "cgroup", "time_for_children"): os.open("/proc/%d/ns/%s" % (p, n), os.O_RDONLY)
    os.kill(p, 9); os.wait()
def ns_child(): # a pid namespace for children that has none yet
    unshare(NEWPID)
def mnt_private():
    unshare(NEWNS); mount("none", "/", None, REC | PRIVATE)
    mount("a b\\c", "/media", "tmpfs", 2 | 4 | 8, "size=3m,mode=711,nr_inodes=77,uid=5,gid=6")
    mount("/usr/share", "/srv", None, BIND); mount("none", "/srv", None, 32 | BIND | 1 | 1024 | 2)
    mount("none", "/run", None, 32 | BIND | (1 << 24) | 2048)
def mnt_chain():
    unshare(NEWNS)
    os.makedirs("/mnt/shared", exist_ok=True); os.makedirs("/mnt/other", exist_ok=True); os.makedirs("/mnt/un", exist_ok=True)
    mount("none", "/", None, REC | PRIVATE)
    mount("sh", "/mnt/shared", "tmpfs"); mount("none", "/mnt/shared", None, SHARED)
    mount("/mnt/shared", "/mnt/other", None, BIND)
    r, w = os.pipe()
    if os.fork() == 0:
        unshare(NEWNS)
        mount("none", "/mnt/shared", None, SLAVE); mount("none", "/mnt/shared", None, SHARED)
        if os.fork() == 0:
            unshare(NEWNS)
            mount("none", "/mnt/shared", None, SLAVE)
            mount("un", "/mnt/un", "tmpfs"); mount("none", "/mnt/un", None, UNBINDABLE)
            os.write(w, b"x")
            while True: signal.pause()
        while True: signal.pause()
    os.read(r, 1)
def mnt_chroot():
    unshare(NEWNS); mount("none", "/", None, REC | PRIVATE)
    os.makedirs("/tmp/jail/in", exist_ok=True); mount("j", "/tmp/jail/in", "tmpfs"); os.chroot("/tmp/jail")
# What container engines make, without one.
ID = "0123456789abcdef" * 4
def like_docker(): container("/var/lib/docker", "overlay2/%s" % ID[::-1], "docker/" + ID, "containers/%s" % ID)
def like_podman(): container("/var/lib/containers/storage", "overlay/%s" % ID, "machine.slice/libpod-%s.scope/container" % ID, "overlay-containers/%s/userdata" % ID, True)
def container(root, layer, group, files, podman=False):
    unshare(NEWNS | NEWPID | NEWUTS | NEWIPC); libc.sethostname(b"web-1", 5)
    mount("none", "/", None, REC | PRIVATE)
    if not os.path.ismount(root): os.makedirs(root, exist_ok=True)
    mount("store", root, "tmpfs")
    l = root + "/" + layer
    for d in ("lower", "diff", "work", "merged"): os.makedirs(l + "/" + d)
    os.makedirs(root + "/" + files); write(root + "/" + files + "/hostname", "web-1\n")
    for d in ("etc", "proc", "run", "old", "bin"): os.makedirs(l + "/lower/" + d)
    write(l + "/lower/etc/hostname", ""); write(l + "/lower/run/.containerenv", "")
    mount("overlay", l + "/merged", "overlay", 0, "lowerdir=%s/lower,upperdir=%s/diff,workdir=%s/work" % (l, l, l))
    mount(root + "/" + files + "/hostname", l + "/merged/etc/hostname", None, BIND)
    if podman:
        write(root + "/" + files + "/.containerenv", "")
        mount(root + "/" + files + "/.containerenv", l + "/merged/run/.containerenv", None, BIND)
    enter(group)
    if os.fork() == 0:
        mount("proc", l + "/merged/proc", "proc")
        os.chdir(l + "/merged"); check(libc.pivot_root(b".", b"old")); os.chdir("/"); check(libc.umount2(b"/old", 2))
        while True: signal.pause()

V1 = "/sys/fs/cgroup1" if "v1" in sys.argv[1:] else ""
if V1:
    V1 = "/run/cgroup1"
    write("/sys/fs/cgroup/cgroup.subtree_control", "-memory -cpu -pids")
    for d, o in {"cpu": "cpu,cpuacct", "memory": "memory", "pids": "pids", "freezer": "freezer", "cpuset": "cpuset",
                 "devices": "devices", "systemd": "none,name=systemd", "net": "net_cls,net_prio"}.items():
        os.makedirs(V1 + "/" + d, exist_ok=True)
        for _ in range(100): # a controller that has just left v2 lingers
            try: mount("cgroup", V1 + "/" + d, "cgroup", 2 | 4 | 8, o); break
            except OSError as e: err = e; time.sleep(0.1)
        else: print("zoo: no v1 %s: %r" % (d, err), flush=True); os.rmdir(V1 + "/" + d)
for f in (fifo, rr, batch, idle, nice_low, nice_high, deadline, threads, waiter, stopped, locked, limits, frozen, frozen_v1, gone_group,
          ns_all, ns_user, ns_time, ns_bound, ns_fd, ns_child, mnt_private, mnt_chain, mnt_chroot, like_docker, like_podman,
          spin_nice, spin_idle, spin_group, spin_throttled):
    child(f)
print("zoo ready", kids, flush=True)
while True: signal.pause()
