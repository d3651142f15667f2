# What the guest itself says of its tasks, cgroups and namespaces, as JSON.
import os, json, fcntl
def rd(p):
    try:
        with open(p, "rb") as f: return f.read().decode("latin-1")
    except OSError: return None
def ln(p):
    try: return os.fsencode(os.readlink(p)).decode("latin-1")
    except OSError: return None
def ioctl(fd, n):
    try: return fcntl.ioctl(fd, n)
    except OSError: return -1
def ns(fd):
    d = {}
    for name, n in ("userns", 0xb701), ("parent", 0xb702):
        f = ioctl(fd, n)
        if f >= 0:
            d[name] = os.fstat(f).st_ino
            os.close(f)
    try: d["owner"] = int.from_bytes(fcntl.ioctl(fd, 0xb704, b"\0\0\0\0"), "little")
    except OSError: pass
    return d
out = {"tasks": {}, "ns": {}, "sys": {}, "cgroups": {}}
def note(path):
    l = ln(path)
    if l is None or l.split(":[")[0] not in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"): return None
    if l not in out["ns"]:
        try:
            fd = os.open(path, os.O_RDONLY); out["ns"][l] = ns(fd); os.close(fd)
        except OSError: return None
    return l
for f in ("stat", "loadavg", "uptime", "timer_list", "modules", "cgroups"): out["sys"][f + ".before"] = rd("/proc/" + f)
me = os.getpid()
for pid in sorted(int(p) for p in os.listdir("/proc") if p.isdigit()):
    if pid == me: continue
    b = "/proc/%d/" % pid
    try:
        for fd in os.listdir(b + "fd"): note(b + "fd/" + fd)
        tids = os.listdir(b + "task")
    except OSError: continue
    for tid in tids:
        t = b + "task/" + tid + "/"
        d = {"pid": pid, "ns": {}}
        for f in ("stack", "sched", "stat", "status", "comm", "cgroup", "schedstat"): d[f] = rd(t + f)
        if int(tid) == pid:
            for f in ("mountinfo", "uid_map", "gid_map", "timens_offsets"): d[f] = rd(b + f)
        try:
            for n in os.listdir(t + "ns"): d["ns"][n] = note(t + "ns/" + n)
        except OSError: pass
        out["tasks"][tid] = d
for line in (rd("/proc/self/mountinfo") or "").splitlines():
    f = line.split(); typ = f[f.index("-") + 1]
    if typ == "nsfs": note(f[4])
    if typ not in ("cgroup", "cgroup2"): continue
    h = out["cgroups"].setdefault(f[4], {})
    for root, dirs, files in os.walk(f[4]):
        c = {}
        for n in files:
            if n.split(".")[0] in ("memory", "cpu", "cpuset", "pids", "cgroup", "freezer", "io", "hugetlb", "cpuacct") or n == "tasks":
                if n.endswith((".pressure", ".numa_stat", ".reclaim", "force_empty", "kmem.slabinfo", "event_control", "kill")): continue
                v = rd(root + "/" + n)
                if v is not None and len(v) < 4000: c[n] = v
        h[root[len(f[4]):] or "/"] = c
for f in ("stat", "loadavg", "uptime", "timer_list"): out["sys"][f] = rd("/proc/" + f)
print(json.dumps(out))
