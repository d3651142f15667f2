import os, sys, socket, threading, select, signal, time, ctypes, fcntl, termios, struct, tempfile, mmap, pty
libc = ctypes.CDLL(None, use_errno=True)
kids = []
def child(f):
    r, w = os.pipe()
    p = os.fork()
    if p == 0:
        os.close(r)
        try:
            f()
        except BaseException as e:
            sys.stderr.write("%s: %r\n" % (f.__name__, e)); sys.stderr.flush()
            os._exit(1)
        os.write(w, b"x"); os.close(w)
        while True:
            signal.pause()
    os.close(w)
    if os.read(r, 1) != b"x":
        print("zoo: failed", f.__name__, flush=True)
    os.close(r)
    kids.append((f.__name__, p))

def files():
    d = tempfile.mkdtemp()
    f = os.open(d + "/pos", os.O_RDWR | os.O_CREAT, 0o640)
    os.write(f, b"0123456789"); os.lseek(f, 4, 0)
    os.open(d + "/app", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK)
    g = os.open(d + "/gone", os.O_RDWR | os.O_CREAT); os.write(g, b"ghost " * 5000); os.unlink(d + "/gone")
    os.open(d + "/new\nline \t\\x", os.O_RDWR | os.O_CREAT)
    n = os.open(d + "/" + "long" * 60, os.O_RDWR | os.O_CREAT)
    fcntl.fcntl(n, fcntl.F_SETOWN, os.getpid()); fcntl.fcntl(n, 10, signal.SIGUSR1)
    os.open(d, os.O_RDONLY); os.open(d, os.O_PATH) ; os.open("/", os.O_RDONLY)
    os.open("/dev/null", os.O_RDWR); os.open("/dev/zero", os.O_RDWR)
    os.set_inheritable(os.dup(f), True)
    os.open("/proc/self/status", os.O_RDONLY); os.open("/sys/kernel/mm", os.O_RDONLY)
    os.open(d, os.O_RDWR | os.O_TMPFILE)
    for ns in os.listdir("/proc/self/ns"): os.open("/proc/self/ns/" + ns, os.O_RDONLY)
    os.chdir(d); os.umask(0o027)
    m = os.open(d + "/mapped\nfile", os.O_RDWR | os.O_CREAT); os.ftruncate(m, 8192)
    global keep; keep = mmap.mmap(m, 8192); keep2 = mmap.mmap(-1, 65536); globals()["keep2"] = keep2
    os.dup2(f, 700)

def gonecwd():
    d = tempfile.mkdtemp(); os.chdir(d); os.rmdir(d)
def chrooted():
    os.makedirs("/tmp/jail/in", exist_ok=True); os.chroot("/tmp/jail"); os.chdir("/in"); os.open("/in", os.O_RDONLY)
def pipes():
    r, w = os.pipe(); os.write(w, b"hello pipe"); os.write(w, b"x" * 5000)
    r, w = os.pipe2(os.O_DIRECT | os.O_NONBLOCK); os.write(w, b"packet1"); os.write(w, b"packet2")
    fcntl.fcntl(w, 1031, 1 << 18)
    d = tempfile.mkdtemp(); os.mkfifo(d + "/fifo"); f = os.open(d + "/fifo", os.O_RDWR); os.write(f, b"fifo data")
def ptys():
    m, s = pty.openpty()
    fcntl.ioctl(m, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 101, 3, 4))
    a = termios.tcgetattr(s); a[3] &= ~termios.ECHO; termios.tcsetattr(s, termios.TCSANOW, a)
    os.write(m, b"typed line\npartial")
    os.setsid(); fcntl.ioctl(s, termios.TIOCSCTTY, 0); os.open("/dev/tty", os.O_RDWR)
    os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY)
    m2, s2 = pty.openpty(); fcntl.ioctl(m2, termios.TIOCPKT, struct.pack("i", 1)); fcntl.ioctl(s2, termios.TIOCEXCL)
def anon():
    e = select.epoll(); ef = libc.eventfd(7, 0o4000); e.register(ef, select.EPOLLIN | select.EPOLLET)
    ef2 = libc.eventfd(3, 1); e.register(ef2, select.EPOLLOUT)
    t = libc.timerfd_create(1, 0); libc.timerfd_settime(t, 0, struct.pack("qqqq", 5, 0, 1000, 5000), None)
    t2 = libc.timerfd_create(7, 0o2000000); libc.timerfd_settime(t2, 0, struct.pack("qqqq", 0, 0, 2000, 0), None)
    t3 = libc.timerfd_create(0, 0); libc.timerfd_settime(t3, 1, struct.pack("qqqq", 0, 0, 4000000000, 0), None)
    libc.timerfd_create(1, 0)
    libc.signalfd(-1, struct.pack("Q", 1 << 9 | 1 << 11), 8, 0) if False else None
    set_ = (ctypes.c_ulong * 16)(); set_[0] = 1 << 9 | 1 << 11; libc.signalfd(-1, set_, 0)
    i = libc.inotify_init1(0); libc.inotify_add_watch(i, b"/tmp", 0x100)
    m = os.memfd_create("my memfd", os.MFD_ALLOW_SEALING); os.write(m, b"memfd content" * 1000); fcntl.fcntl(m, 1033, 0x2)
    mm = mmap.mmap(m, 13000, flags=mmap.MAP_PRIVATE); globals()["mm"] = mm
    libc.syscall(434, os.getpid(), 0)
    globals()["keep"] = e
def sockets():
    a, b = socket.socketpair(); d = tempfile.mkdtemp()
    s = socket.socket(socket.AF_UNIX); s.bind(d + "/sock"); s.listen(5)
    s2 = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s2.bind(b"\0abstract")
    t = socket.socket(); t.bind(("127.0.0.1", 7001)); t.listen(9)
    c = socket.create_connection(("127.0.0.1", 7001)); ac, _ = t.accept()
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("127.0.0.1", 7002))
    u6 = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    n = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    globals()["keep"] = (a, b, s, s2, t, c, ac, u, u6, n)
    a.send(b"in flight")
def creds():
    libc.prctl(38, 1, 0, 0, 0)
    os.setgroups([10, 20, 30, 4000000]); os.setresgid(11, 12, 13); os.setresuid(101, 102, 103)
def capped():
    libc.prctl(8, 1, 0, 0, 0); libc.prctl(24, 21, 0, 0, 0)
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
def namespaces():
    if libc.unshare(0x04000000 | 0x08000000 | 0x00020000 | 0x40000000 | 0x02000000): raise OSError(ctypes.get_errno())
    libc.sethostname(b"other", 5)
    libc.mount(b"none", b"/", None, 1 << 14 | 1 << 18, None)
    libc.mount(b"tm p", b"/mnt", b"tmpfs", 0, None)
    libc.mount(b"/usr/share", b"/opt", None, 4096, None)
    os.open("/mnt/x", os.O_RDWR | os.O_CREAT); os.open("/opt", os.O_RDONLY)
    l = os.open("/mnt", os.O_RDONLY); libc.umount2(b"/mnt", 2)
def userns():
    os.setgroups([])
    pid = os.getpid()
    if libc.unshare(0x10000000): raise OSError(ctypes.get_errno())
    if os.fork() == 0:
        while True: signal.pause()
def pidtimens():
    if libc.unshare(0x20000000 | 0x80): raise OSError(ctypes.get_errno())
    open("/proc/self/timens_offsets", "w").write("monotonic 1000 5\nboottime 7 0\n")
    if os.fork() == 0:
        while True: signal.pause()
def many():
    global l; l = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
    for f in l[::3]: os.close(f)
def bigenv():
    os.execve("/bin/sleep", ["sleep", "100000"], {"A%d" % i: "v" * 1000 for i in range(50)})
def cgroups():
    d = "/sys/fs/cgroup/zoo grp/in ner"
    os.makedirs(d, exist_ok=True)
    for path in ("/sys/fs/cgroup", "/sys/fs/cgroup/zoo grp"):
        open(path + "/cgroup.subtree_control", "w").write("+memory +cpu +pids")
    open(d + "/memory.max", "w").write("100000000"); open(d + "/memory.high", "w").write("90000000"); open(d + "/memory.low", "w").write("8192")
    open(d + "/cpu.max", "w").write("50000 200000"); open(d + "/cpu.weight", "w").write("77"); open(d + "/pids.max", "w").write("33")
    open(d + "/cgroup.procs", "w").write(str(os.getpid()))
def sec():
    libc.prctl(38, 1, 0, 0, 0)
    prog = struct.pack("HBBI", 6, 0, 0, 0x7fff0000)
    buf = ctypes.create_string_buffer(prog)
    fp = struct.pack("HxxxxxxQ", 1, ctypes.addressof(buf))
    for _ in range(2):
        if libc.prctl(22, 2, ctypes.c_char_p(fp)): raise OSError(ctypes.get_errno())
def seqpos():
    import array
    fd = os.open("/etc", os.O_RDONLY | os.O_DIRECTORY); os.scandir(fd).__next__()

def hugeshm():
    os.makedirs("/root/huge", exist_ok=True)
    # Realtime kernels have no huge pages.
    if libc.mount(b"none", b"/root/huge", b"tmpfs", 0, b"huge=always") and libc.mount(b"none", b"/root/huge", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno())
    f = os.open("/root/huge/big", os.O_RDWR | os.O_CREAT)
    for i in range(1280): os.write(f, struct.pack("I", i) * 1024)
    h = os.open("/root/huge/holes", os.O_RDWR | os.O_CREAT)
    os.pwrite(h, b"end", 50 << 20); os.posix_fallocate(h, 60 << 20, 8192)
def swapped():
    os.system("dd if=/dev/zero of=/root/swap bs=1M count=16 2>/dev/null; chmod 600 /root/swap; mkswap /root/swap >/dev/null; swapon /root/swap")
    d = "/sys/fs/cgroup/swapped"; os.makedirs(d, exist_ok=True)
    open(d + "/cgroup.procs", "w").write(str(os.getpid()))
    m = os.memfd_create("swapped"); os.write(m, b"0123456789abcdef" * (1 << 16))
    if os.path.exists(d + "/memory.reclaim"):
        r = os.open(d + "/memory.reclaim", os.O_WRONLY)
        for _ in range(5):
            try: os.write(r, b"1M")
            except OSError: pass # did what it could
    else: # before 5.19
        for v in "0", "max": open(d + "/memory.high", "w").write(v)
def signals():
    signal.signal(signal.SIGHUP, signal.SIG_IGN); signal.signal(signal.SIGUSR2, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMIN + 3})
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGUSR1); os.kill(os.getpid(), signal.SIGRTMIN + 3); os.kill(os.getpid(), signal.SIGRTMIN + 3)
def timers():
    signal.setitimer(signal.ITIMER_REAL, 40000, 5.5); signal.setitimer(signal.ITIMER_PROF, 3000, 2)
    for clock, signo, notify in (0, 10, 0), (1, 35, 1), (7, 12, 0), (2, 14, 0):
        ev = struct.pack("Qii48x", 0x1122334455667788 + clock, signo, notify); t = ctypes.c_int()
        if libc.timer_create(clock, ev, ctypes.byref(t)): raise OSError(ctypes.get_errno())
        if libc.timer_settime(t, 0, struct.pack("qqqq", 7, 500, 50000, 0), None): raise OSError(ctypes.get_errno())

for f in (hugeshm, swapped, files, gonecwd, chrooted, pipes, ptys, anon, sockets, creds, capped, namespaces, userns, pidtimens, many, cgroups, sec, seqpos, signals, timers):
    child(f)
if os.fork() == 0:
    bigenv()
if os.fork() == 0:
    os.execv("/usr/bin/perl", ["perl", "-e", '$0 = "renamed by perl " . ("z" x 3000); sleep 100000;', "arg1", "arg2"])
if os.fork() == 0:
    os.execv("/usr/bin/perl", ["perl", "-e", '$0 = "short"; sleep 100000;', "arg1", "arg2"])
print("zoo ready", kids, flush=True)
while True: signal.pause()
