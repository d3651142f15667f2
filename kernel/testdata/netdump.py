# Prints what the guest says of the network namespaces of some processes.
import json, os, subprocess, sys
def run(pid, *argv):
    p = subprocess.run(("nsenter", "--net=/proc/%s/ns/net" % pid) + argv, capture_output=True)
    return p.stdout.decode("latin-1") if p.returncode == 0 else None
out = {}
for pid in sys.argv[1:]:
    d = dict(inum=os.readlink("/proc/%s/ns/net" % pid), proc={})
    for f in ("unix", "tcp", "tcp6", "udp", "udp6", "udplite", "udplite6", "raw", "raw6", "icmp", "icmp6", "netlink", "packet", "dev", "if_inet6", "fib_trie"):
        try: d["proc"][f] = open("/proc/%s/net/%s" % (pid, f), "rb").read().decode("latin-1")
        except OSError: pass
    d["ss"] = run(pid, "ss", "-anpeimoOH"); d["unix"] = run(pid, "ss", "-axneOH")
    d["addr"] = run(pid, "ip", "-j", "-d", "addr"); d["route"] = run(pid, "ip", "-j", "-4", "route", "show", "table", "all")
    out[pid] = d
print(json.dumps(out))
