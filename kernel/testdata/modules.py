# Prints, as JSON, what the guest itself says of its modules, symbols and kernel log.
# Strings are Latin-1: one character a byte.
import json
import os


def read(path):
    try:
        with open(path, "rb") as f:
            return f.read().decode("latin1")
    except OSError:
        return None


def module(name):
    d = "/sys/module/" + name + "/"
    m = {f: (read(d + f) or "").strip() for f in ("initstate", "refcnt", "taint", "version", "srcversion")}
    m["holders"] = sorted(os.listdir(d + "holders")) if os.path.isdir(d + "holders") else []
    m["note"] = (read(d + "notes/.note.gnu.build-id") or "").encode("latin1").hex()
    params = d + "parameters/"
    m["params"] = {p: read(params + p) for p in os.listdir(params)} if os.path.isdir(params) else {}
    return m


def kmsg():
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    records = []
    while True:
        try:
            records.append(os.read(fd, 16384).decode("latin1"))
        except BrokenPipeError:
            continue
        except BlockingIOError:
            return records


modules = read("/proc/modules")
print(json.dumps({
    "modules": modules,
    "sys": {n: module(n) for n in (l.split()[0] for l in modules.splitlines())},
    "kallsyms": read("/proc/kallsyms"),
    "notes": (read("/sys/kernel/notes") or "").encode("latin1").hex(),
    "kmsg": kmsg(),
}))
