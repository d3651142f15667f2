# Holds sockets of every kind in the first network namespace and in one of its own,
# and says in /root/netzoo.N.json what the kernel tells their owner about them.
import array, base64, ctypes, fcntl, json, os, signal, socket, struct, subprocess, sys, tempfile, time
libc = ctypes.CDLL(None, use_errno=True)
S = socket
held = {}     # name -> socket
waiting = {}  # name -> what is in its receive queue, a list
def sh(c): subprocess.run(c, shell=True, check=True)
def keep(name, s, recv=None):
    held[name] = s
    if recv is not None: waiting[name] = recv
    return s
def pattern(n): return os.urandom(n)

def tcp(veth):
    l = keep("listen", S.socket()); l.setsockopt(S.SOL_SOCKET, S.SO_REUSEADDR, 1); l.bind(("127.0.0.1", 7101)); l.listen(5)
    for i in range(2): keep("backlog%d" % i, S.create_connection(("127.0.0.1", 7101))).send(b"early")
    l2 = keep("listen6", S.socket(S.AF_INET6)); l2.setsockopt(S.IPPROTO_IPV6, S.IPV6_V6ONLY, 0); l2.bind(("::", 7102)); l2.listen(100)
    def pair(name, to):
        c = keep(name + ".client", S.create_connection(to)); s, _ = l2.accept()
        keep(name + ".server", s); return c, s
    c, s = pair("v6", ("::1", 7102)); c.send(b"hello six"); waiting["v6.server"] = [b"hello six"]
    c, s = pair("mapped", ("127.0.0.1", 7102)); c.send(b"0123456789"); s.recv(4); waiting["mapped.server"] = [b"456789", b"corked"]
    s.setsockopt(S.IPPROTO_TCP, S.TCP_NODELAY, 1); c.setsockopt(S.IPPROTO_TCP, S.TCP_CORK, 1); c.send(b"corked")
    c, s = pair("full", ("127.0.0.1", 7102))
    c.setsockopt(S.SOL_SOCKET, S.SO_SNDBUF, 400000); c.setblocking(False); n = 0; data = pattern(1 << 20)
    try:
        while n < len(data): n += c.send(data[n:n + 50000])
    except BlockingIOError: pass
    waiting["full.server"] = [data[:n]]  # and the rest is in the send queue
    c, s = pair("keep", ("::1", 7102))
    c.setsockopt(S.SOL_SOCKET, S.SO_KEEPALIVE, 1)
    for o, v in (("TCP_KEEPIDLE", 1111), ("TCP_KEEPINTVL", 22), ("TCP_KEEPCNT", 3), ("TCP_SYNCNT", 5), ("TCP_USER_TIMEOUT", 54321), ("TCP_LINGER2", 17), ("TCP_MAXSEG", 900)):
        c.setsockopt(S.IPPROTO_TCP, getattr(S, o), v)
    c.setsockopt(S.IPPROTO_TCP, 13, b"reno")
    c.setsockopt(S.IPPROTO_IPV6, S.IPV6_TCLASS, 0x28); c.setsockopt(S.IPPROTO_IPV6, S.IPV6_UNICAST_HOPS, 33)
    c, s = pair("half", ("127.0.0.1", 7102)); c.shutdown(S.SHUT_WR)
    c, s = pair("orphan", ("127.0.0.1", 7102)); c.send(b"bye"); c.close(); del held["orphan.client"]; waiting["orphan.server"] = [b"bye"]
    c, s = pair("gone", ("127.0.0.1", 7102)); c.close(); s.close(); del held["gone.client"], held["gone.server"]
    r = keep("reuseport", S.socket()); r.setsockopt(S.SOL_SOCKET, S.SO_REUSEPORT, 1); r.bind(("127.0.0.1", 7103)); r.listen(1)
    r = keep("reuseport2", S.socket()); r.setsockopt(S.SOL_SOCKET, S.SO_REUSEPORT, 1); r.bind(("127.0.0.1", 7103)); r.listen(1)
    keep("closed", S.socket()).bind(("127.0.0.1", 7104))
    if veth:
        # Nobody answers there, and nobody is asked who has the address.
        sh("ip neigh replace %s.77 lladdr 02:00:00:00:00:77 nud permanent dev %s" % veth)
        y = keep("syn_sent", S.socket()); y.setblocking(False)
        try: y.connect((veth[0] + ".77", 7105))
        except BlockingIOError: pass
        syn(veth[0] + ".77", veth[0] + ".%d" % (1 if veth[1] == "nz0" else 2))

def syn(src, dst): # the first packet of a connection whose handshake never ends
    s, d = S.inet_aton(src), S.inet_aton(dst)
    h = struct.pack("!HHIIBBHHH", 7777, 7102, 12345, 0, 5 << 4, 2, 1000, 0, 0)
    c = s + d + struct.pack("!BBH", 0, 6, len(h)) + h
    n = sum(struct.unpack("!%dH" % (len(c) // 2), c)); n = (n >> 16) + (n & 0xffff); n += n >> 16
    h = h[:16] + struct.pack("!H", ~n & 0xffff) + h[18:]
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(h), 1, 0, 64, 6, 0, s, d)
    S.socket(S.AF_INET, S.SOCK_RAW, S.IPPROTO_RAW).sendto(ip + h, (dst, 0))

def datagrams():
    u = keep("udp", S.socket(S.AF_INET, S.SOCK_DGRAM)); u.bind(("127.0.0.1", 7201))
    f = keep("udp.from", S.socket(S.AF_INET, S.SOCK_DGRAM)); f.bind(("127.0.0.1", 7202)); f.connect(("127.0.0.1", 7201))
    waiting["udp"] = [b"", b"one", pattern(20000)]
    for d in waiting["udp"]: f.send(d)
    r = keep("udp.reader", S.socket(S.AF_INET, S.SOCK_DGRAM)); r.bind(("127.0.0.1", 7203))
    for i in range(4): f.sendto(b"datagram %d" % i, ("127.0.0.1", 7203))
    r.recv(100); waiting["udp.reader"] = [b"datagram %d" % i for i in (1, 2, 3)]
    for o, v in ((S.SO_BROADCAST, 1), (S.SO_MARK, 0x1234), (S.SO_PRIORITY, 5), (S.SO_RCVBUF, 100000), (S.SO_RCVLOWAT, 7), (S.SO_NO_CHECK if hasattr(S, "SO_NO_CHECK") else 11, 1)): f.setsockopt(S.SOL_SOCKET, o, v)
    f.setsockopt(S.SOL_SOCKET, S.SO_RCVTIMEO, struct.pack("ll", 3, 500000)); f.setsockopt(S.SOL_SOCKET, S.SO_LINGER, struct.pack("ii", 1, 9))
    for o, v in ((S.IP_TOS, 0x10), (S.IP_TTL, 77), (8, 1), (15, 1), (19, 1), (11, 1)): f.setsockopt(S.IPPROTO_IP, o, v) # PKTINFO FREEBIND TRANSPARENT RECVERR
    b = keep("udp.dev", S.socket(S.AF_INET, S.SOCK_DGRAM)); b.setsockopt(S.SOL_SOCKET, S.SO_BINDTODEVICE, b"lo\0"); b.setsockopt(S.IPPROTO_IP, 24, 1); b.bind(("0.0.0.0", 7204))
    v = keep("udp6", S.socket(S.AF_INET6, S.SOCK_DGRAM)); v.bind(("::", 7201 + 10)); f6 = S.socket(S.AF_INET6, S.SOCK_DGRAM); f6.sendto(b"six", ("::1", 7211)); waiting["udp6"] = [b"six"]
    try: keep("udplite", S.socket(S.AF_INET, S.SOCK_DGRAM, 136)).bind(("127.0.0.1", 7301)); keep("udplite6", S.socket(S.AF_INET6, S.SOCK_DGRAM, 136)).bind(("::1", 7302))
    except OSError: held.pop("udplite", None); held.pop("udplite6", None)
    w = keep("raw", S.socket(S.AF_INET, S.SOCK_RAW, 250)); w.bind(("127.0.0.1", 0)); S.socket(S.AF_INET, S.SOCK_RAW, 250).sendto(b"raw data", ("127.0.0.1", 0))
    keep("rawhdr", S.socket(S.AF_INET, S.SOCK_RAW, S.IPPROTO_RAW)); keep("raw6", S.socket(S.AF_INET6, S.SOCK_RAW, 58))
    open("/proc/sys/net/ipv4/ping_group_range", "w").write("0 2147483647")
    keep("ping", S.socket(S.AF_INET, S.SOCK_DGRAM, 1)).bind(("127.0.0.1", 44)); keep("ping6", S.socket(S.AF_INET6, S.SOCK_DGRAM, 58)).bind(("::1", 45))

def unixes():
    d = tempfile.mkdtemp()
    l = keep("unix.listen", S.socket(S.AF_UNIX)); l.bind(d + "/listen"); l.listen(7)
    for i in range(3): keep("unix.backlog%d" % i, S.socket(S.AF_UNIX)).connect(d + "/listen")
    c = keep("unix.client", S.socket(S.AF_UNIX)); a, _ = (keep("unix.pair%d" % i, x) for i, x in enumerate(S.socketpair()))
    a.setsockopt(S.SOL_SOCKET, S.SO_PASSCRED, 1); _.send(b"first "); _.sendmsg([b"with files"], [(S.SOL_SOCKET, S.SCM_RIGHTS, array.array("i", [1, l.fileno()]))]); big = pattern(100000); _.send(big)
    a.recv(2); waiting["unix.pair0"] = [b"rst ", b"with files", big]
    g = keep("unix.dgram", S.socket(S.AF_UNIX, S.SOCK_DGRAM)); n = "\0abs tract\0%d" % os.getpid(); g.bind(n)
    f = keep("unix.dgram.from", S.socket(S.AF_UNIX, S.SOCK_DGRAM)); f.connect(n); f.send(b"dg1"); f.send(b"datagram 2"); waiting["unix.dgram"] = [b"dg1", b"datagram 2"]
    p, q = (keep("unix.seq%d" % i, x) for i, x in enumerate(S.socketpair(S.AF_UNIX, S.SOCK_SEQPACKET))); p.send(b"packet"); waiting["unix.seq1"] = [b"packet"]
    x = keep("unix.gone", S.socket(S.AF_UNIX)); x.bind(d + "/" + "x" * (107 - len(d) - 1)); os.unlink(x.getsockname())
    os.chdir(d); keep("unix.relative", S.socket(S.AF_UNIX, S.SOCK_DGRAM)).bind("relative"); os.chdir("/")
    h, i = S.socketpair(); i.close(); keep("unix.widow", h)

def others():
    n = keep("netlink", S.socket(S.AF_NETLINK, S.SOCK_RAW, 0)); n.bind((0, 0x1 | 0x10))
    n.send(struct.pack("IHHIIBxxx", 20, 18, 0x301, 1, 0, 0))  # RTM_GETLINK, dump
    g = keep("genl", S.socket(S.AF_NETLINK, S.SOCK_DGRAM, 16)); g.bind((4242, 0)); keep("uevent", S.socket(S.AF_NETLINK, S.SOCK_DGRAM, 15)).bind((0, 1))
    k = keep("packet", S.socket(S.AF_PACKET, S.SOCK_RAW, 0)); k.bind(("lo", 0x88b5))
    keep("packet.all", S.socket(S.AF_PACKET, S.SOCK_DGRAM, S.htons(3))); keep("packet.none", S.socket(S.AF_PACKET, S.SOCK_RAW, 0))

def options(s):
    o = {}
    def get(name, level, opt, fmt="i"):
        try: v = s.getsockopt(level, opt, 104 if fmt is None else struct.calcsize(fmt))
        except OSError: return
        o[name] = list(struct.unpack(fmt, v)) if fmt and len(fmt) > 1 else struct.unpack(fmt, v)[0] if fmt else base64.b64encode(v).decode()
    for n, v in dict(reuseaddr=2, type=3, broadcast=6, sndbuf=7, rcvbuf=8, keepalive=9, oobinline=10, no_check=11, priority=12, reuseport=15, passcred=16, rcvlowat=18, dontroute=5, acceptconn=30, mark=36, protocol=38, domain=39).items(): get(n, 1, v)
    get("linger", 1, 13, "ii"); get("rcvtimeo", 1, 20, "ll"); get("sndtimeo", 1, 21, "ll"); get("bindtoifindex", 1, 62)
    if s.family in (2, 10):
        for n, v in dict(tos=1, ttl=2, hdrincl=3, pktinfo=8, mtu_discover=10, recverr=11, recvttl=12, recvtos=13, freebind=15, transparent=19, mcast_loop=34, mcast_ttl=33, bind_no_port=24).items(): get("ip_" + n, 0, v)
    if s.family == 10: get("v6only", 41, 26); get("tclass", 41, 67); get("hops", 41, 16)
    if s.family in (2, 10) and s.type == 1:
        for n, v in dict(nodelay=1, maxseg=2, cork=3, keepidle=4, keepintvl=5, keepcnt=6, syncnt=7, linger2=8, user_timeout=18).items(): get("tcp_" + n, 6, v)
        o["congestion"] = s.getsockopt(6, 13, 16).rstrip(b"\0").decode()
        i = s.getsockopt(6, 11, 104); o["info"] = list(struct.unpack("8B24I", i))
        for n, v in dict(inq=0x541b, outq=0x5411, unsent=0x894b).items():
            try: o[n] = struct.unpack("i", fcntl.ioctl(s, v, b"\0" * 4))[0]
            except OSError: pass
        if o["info"][0] in (1, 4, 5, 8):  # repair mode tells the sequence numbers
            s.setsockopt(6, 19, 1)
            for n, q in dict(rcv_nxt=1, write_seq=2).items(): s.setsockopt(6, 20, q); o[n] = struct.unpack("I", s.getsockopt(6, 21, 4))[0]
            o["window"] = list(struct.unpack("5I", s.getsockopt(6, 29, 20)))
            o["timestamp"] = struct.unpack("I", s.getsockopt(6, 24, 4))[0]
            s.setsockopt(6, 20, 0); s.setsockopt(6, 19, -1, ) if not os.environ.get("OLD") else s.setsockopt(6, 19, 0)
    if s.family == 1 and s.type == 1:
        try: o["peercred"] = list(struct.unpack("iII", s.getsockopt(1, 17, 12)))
        except OSError: pass
    return o

def hold(n, veth):
    tcp(veth); datagrams(); unixes(); others()
    time.sleep(1) # acknowledgements are on their way
    out = {}
    for name, s in held.items():
        d = out[name] = dict(ino=os.fstat(s.fileno()).st_ino, fd=s.fileno(), options=options(s))
        if name in waiting: d["recv"] = [base64.b64encode(w).decode() for w in waiting[name]]
    # What was taken from the full connection, and what was not.
    w = waiting["full.server"][0]; got = out["full.server"]["options"]["inq"]
    out["full.server"]["recv"] = [base64.b64encode(w[:got]).decode()]
    left = out["full.client"]["options"]["outq"]; out["full.client"]["send"] = base64.b64encode(w[len(w) - left:]).decode()
    json.dump(dict(pid=os.getpid(), sockets=out), open("/root/netzoo.%d.tmp" % n, "w"))
    os.rename("/root/netzoo.%d.tmp" % n, "/root/netzoo.%d.json" % n)
    while True: signal.pause()

ready, go = os.pipe(), os.pipe()
other = os.fork()
if other == 0:
    if libc.unshare(0x40000000): raise OSError(ctypes.get_errno())
    sh("ip link set lo up"); os.write(ready[1], b"x"); os.read(go[0], 1)
    sh("ip addr add 10.99.0.2/24 dev nz1; ip link set nz1 up mtu 1400; ip -6 addr add 2001:db8::2/64 dev nz1 nodad; ip addr add 10.98.0.1 peer 10.98.0.2/32 dev nz1; ip route add 10.97.0.0/16 via 10.99.0.9 metric 5")
    hold(1, ("10.99.0", "nz1"))
os.read(ready[0], 1)
sh("ip link add nz0 type veth peer name nz1 netns %d; ip addr add 10.99.0.1/24 brd + dev nz0; ip link set nz0 up alias 'an alias'; ip -6 addr add 2001:db8::1/64 dev nz0 nodad" % other)
sh("ip tuntap add nztun mode tun; ip addr add 172.31.0.1/30 dev nztun; ip route add blackhole 192.0.2.0/24; ip route add default via 10.99.0.2 src 10.99.0.1; ip route add 198.51.100.0/24 table 77 dev nz0 proto static scope link")
os.write(go[1], b"x")
hold(0, ("10.99.0", "nz0"))
