# Prints what the guest says of its memory.
import json, os

def read(path):
    try:
        return open(path).read()
    except OSError:
        return None

def caches():
    for name in sorted(os.listdir("/sys/kernel/slab")):
        d = "/sys/kernel/slab/" + name + "/"
        attrs = ("object_size", "slab_size", "align", "order", "objs_per_slab", "aliases", "reclaim_account",
                 "hwcache_align", "cache_dma", "destroy_by_rcu")
        yield name, {a: read(d + a) for a in attrs}

out = {f: read("/proc/" + f) for f in ("slabinfo", "buddyinfo", "pagetypeinfo", "zoneinfo", "vmstat", "meminfo")}
out["sysfs"] = dict(caches()) if os.path.isdir("/sys/kernel/slab") else {}
print(json.dumps(out))
