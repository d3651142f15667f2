# Makes System V and POSIX IPC objects in two namespaces and prints what the guest
# says of them.
import ctypes, json, os, signal, struct, sys

libc = ctypes.CDLL(None, use_errno=True)
CREAT, RMID, SETALL, GETVAL, GETPID, IPC_STAT, LOCK = 0o1000, 0, 17, 12, 11, 2, 11

def check(r):
    if r in (-1, 0xffffffffffffffff):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return r

libc.shmat.restype = ctypes.c_void_p
libc.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p]
libc.mq_send.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint]
libc.msgsnd.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
libc.msgrcv.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_long, ctypes.c_int]
libc.semop.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t]

def inchild(f):
    p = os.fork()
    if p == 0:
        code = 1
        try:
            f()
            code = 0
        finally:
            os._exit(code)
    if os.waitpid(p, 0)[1]:
        raise OSError("child failed")

def stay(f):
    r, w = os.pipe()
    if os.fork() == 0:
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        f()
        os.write(w, b"x")
        while True:
            signal.pause()
    os.close(w)
    if os.read(r, 1) != b"x":
        raise OSError("child failed")

def shm(key, size, mode, pages):
    i = check(libc.shmget(key, size, CREAT | mode))
    a = check(libc.shmat(i, None, 0))
    ctypes.memset(a, 0x5a, pages * 4096)
    return i, a

def sem(key, values, mode):
    i = check(libc.semget(key, len(values), CREAT | mode))
    check(libc.semctl(i, 0, SETALL, struct.pack("%dH" % len(values), *values)))
    return i

def queue(key, mode, messages):
    i = check(libc.msgget(key, CREAT | mode))
    for t, b in messages:
        check(libc.msgsnd(i, struct.pack("l", t) + b, len(b), 0))
    return i

def mq(name, maxmsg, size, mode, messages):
    d = check(libc.mq_open(name, os.O_CREAT | os.O_RDWR, mode, struct.pack("8l", 0, maxmsg, size, 0, 0, 0, 0, 0)))
    for prio, b in messages:
        check(libc.mq_send(d, b, len(b), prio))
    return d

def view(mount, queues):
    os.makedirs(mount, exist_ok=True)
    check(libc.mount(b"none", mount.encode(), b"mqueue", 0, None))
    v = {"inum": os.stat("/proc/self/ns/ipc").st_ino, "sems": {}, "qbytes": {}, "limits": {}, "mq": {}}
    for kind in ("shm", "sem", "msg"):
        v[kind] = open("/proc/sysvipc/" + kind).read()
    for line in v["sem"].splitlines()[1:]:
        i, n = int(line.split()[1]), int(line.split()[3])
        v["sems"][i] = [[check(libc.semctl(i, j, GETVAL)), check(libc.semctl(i, j, GETPID))] for j in range(n)]
    for line in v["msg"].splitlines()[1:]:
        i = int(line.split()[1])
        buf = ctypes.create_string_buffer(256)
        check(libc.msgctl(i, IPC_STAT, buf))
        v["qbytes"][i] = struct.unpack_from("Q", buf, 48 + 24 + 16)[0]
    for name in ("kernel/sem", "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/shmmax", "kernel/shmall",
                 "kernel/shmmni", "fs/mqueue/queues_max", "fs/mqueue/msg_max", "fs/mqueue/msgsize_max"):
        v["limits"][name] = open("/proc/sys/" + name).read().split()
    for name in os.listdir(mount):
        st = os.stat(mount + "/" + name)
        d = check(libc.mq_open(b"/" + name.encode(), os.O_RDONLY, 0, None))
        attr = ctypes.create_string_buffer(64)
        check(libc.mq_getattr(d, attr))
        v["mq"][name] = {"text": open(mount + "/" + name).read(), "attr": struct.unpack_from("4q", attr),
                         "mode": st.st_mode, "uid": st.st_uid, "ino": st.st_ino}
    check(libc.umount2(mount.encode(), 0))
    v["messages"] = {i: [[t, b.decode("latin1")] for t, b in m] for i, m in queues["msg"].items()}
    v["mqmessages"] = {n: [[p, b.decode("latin1")] for p, b in m] for n, m in queues["mq"].items()}
    return v

LONG = bytes(range(256)) * 24

def first():
    shm(0x1234, 100000, 0o640, 3)
    i, _ = shm(0x5eed5eed - (1 << 31), 1 << 20, 0o600, 20)
    check(libc.shmctl(i, LOCK, None))
    i, _ = shm(0, 4096, 0o666, 1)
    check(libc.shmctl(i, RMID, None))
    inchild(lambda: (os.setgid(33), os.setuid(1000), shm(0x4321, 12345, 0o600, 2)))
    gone, _ = shm(0, 8192, 0o600, 1)
    s = sem(0x777, [3, 0, 9], 0o660)
    inchild(lambda: check(libc.semop(s, struct.pack("HhhHhh", 0, -1, 0, 2, 5, 0), 2)))
    sem(0, [i % 7 for i in range(250)], 0o600)
    all = [(1, b"one"), (7, LONG), (1, b""), (3, b"three" * 100)]
    q = queue(0x99, 0o622, all)
    inchild(lambda: check(libc.msgrcv(q, ctypes.create_string_buffer(100), 8, 1, 0)))
    e = queue(0, 0o600, [])
    a = mq(b"/alpha", 10, 7000, 0o640, [(5, b"five"), (0, b"zero"), (31, LONG[:6999]), (5, b"five again")])
    mq(b"/empty", 3, 64, 0o600, [])
    # sigevent: value, signo, notify = SIGEV_SIGNAL
    n = mq(b"/notify", 2, 64, 0o600, [])
    stay(lambda: check(libc.mq_notify(n, struct.pack("Qii", 0, signal.SIGUSR1, 0) + bytes(48))))
    libc.semctl(sem(0, [1], 0o600), 0, RMID)  # a hole in the numbers
    return {"msg": {q: all[1:], e: []},
            "mq": {"alpha": [(31, LONG[:6999]), (5, b"five"), (5, b"five again"), (0, b"zero")], "empty": [], "notify": []}}

def other():
    check(libc.unshare(0x08000000 | 0x00020000))
    check(libc.mount(b"none", b"/", None, 1 << 14 | 1 << 18, None))
    shm(0x1234, 5000, 0o604, 1)
    sem(0x42, [1], 0o600)
    q = queue(0x99, 0o600, [(2, b"of the other")])
    mq(b"/alpha", 5, 100, 0o600, [(1, b"x")])
    return {"msg": {q: [(2, b"of the other")]}, "mq": {"alpha": [(1, b"x")]}}

def keeper(make, mount):
    r, w = os.pipe()
    p = os.fork()
    if p == 0:
        os.setsid()
        try:
            out = json.dumps(view(mount, make()))
        except BaseException as e:
            out = json.dumps({"error": repr(e)})
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        f = os.fdopen(w, "w"); f.write(out + "\n"); f.close()
        while True:
            signal.pause()
    os.close(w)
    v = json.loads(os.fdopen(r).readline())  # no end: grandchildren have it open
    v["pid"] = p
    return v

print(json.dumps([keeper(first, "/tmp/mq1"), keeper(other, "/tmp/mq2")]))
