from drgn.helpers.linux import for_each_task

for t in for_each_task(prog):
    print(t.pid.value_(), t.comm.string_().decode(errors="replace"))
