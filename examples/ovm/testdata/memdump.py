# Prints the memory of a process as /proc/PID/mem has it: for each mapping a line
# "start end perms", then for each of its pages "0" and 4096 bytes, or "E" and
# nothing if the page cannot be read. All compressed.
import sys
import zlib

pid = sys.argv[1]
with open("/proc/%s/maps" % pid) as f:
    maps = [line.split()[:2] for line in f]
z = zlib.compressobj(1)
out = sys.stdout.buffer
with open("/proc/%s/mem" % pid, "rb", 0) as mem:
    for where, perms in maps:
        start, end = (int(x, 16) for x in where.split("-"))
        if start >= 1 << 63:
            continue
        out.write(z.compress(b"%x %x %s\n" % (start, end, perms.encode())))
        for page in range(start, end, 4096):
            try:
                mem.seek(page)
                data = mem.read(4096)
            except OSError:
                data = b""
            out.write(z.compress(b"0" + data if len(data) == 4096 else b"E"))
out.write(z.flush())
