# Prints the memory of a process as /proc/PID/mem has it: for each readable mapping
# a line "start end perms", then for each chunk of it one of "D" and the bytes, "Z"
# for zeros, "E" for what cannot be read. A chunk is 64 pages, or what is left of
# the mapping, or after "P" each page of it by itself. All compressed.
import sys
import zlib

CHUNK = 64 * 4096
pid = sys.argv[1]
with open("/proc/%s/maps" % pid) as f:
    maps = [line.split()[:2] for line in f]
z = zlib.compressobj(1)
mem = open("/proc/%s/mem" % pid, "rb", 0)


def write(b):
    sys.stdout.buffer.write(z.compress(b))


def read(start, size):
    try:
        mem.seek(start)
        data = mem.read(size)
    except OSError:
        return None
    return data if len(data) == size else None


def put(data):
    if data is None:
        write(b"E")
    elif not data.strip(b"\0"):
        write(b"Z")
    else:
        write(b"D" + data)


for where, perms in maps:
    start, end = (int(x, 16) for x in where.split("-"))
    if start >= 1 << 63 or perms.startswith("---"):
        continue
    write(b"%x %x %s\n" % (start, end, perms.encode()))
    for at in range(start, end, CHUNK):
        size = min(CHUNK, end - at)
        data = read(at, size)
        if data is not None:
            put(data)
            continue
        write(b"P")
        for page in range(at, at + size, 4096):
            put(read(page, 4096))
sys.stdout.buffer.write(z.flush())
