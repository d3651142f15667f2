# Prints what the guest says of its memory, on two lines: files of /proc, or "sysfs" for
# its slab caches, before and after something was written to the FIFO mem.go.
import json, os, sys

def read(path):
    try:
        return open(path).read()
    except OSError:
        return None

def caches():
    attrs = ("object_size", "align", "aliases", "reclaim_account", "hwcache_align", "destroy_by_rcu")
    for name in os.listdir("/sys/kernel/slab"):
        yield name, {a: read("/sys/kernel/slab/" + name + "/" + a) for a in attrs}

def view():
    return {f: dict(caches()) if f == "sysfs" else read("/proc/" + f) for f in sys.argv[1:]}

if not os.path.exists("/root/mem.go"):
    os.mkfifo("/root/mem.go")
view()  # what is loaded and allocated for it the first time
print(json.dumps(view()), flush=True)
read("/root/mem.go")
print(json.dumps(view()), flush=True)
