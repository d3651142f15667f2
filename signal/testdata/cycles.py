# Usage: cycles.py N FILE
# Starts N processes that count what they live through, in a page that they share:
# first how often each has gone on, then how often it had SIGCONT, then SIGUSR1. Writes
# the page's address into FILE. They sleep in different ways, and hardly run.
import ctypes, mmap, os, select, signal, sys, threading, time

n = int(sys.argv[1])
nap = 0.15
page = mmap.mmap(-1, 4096)
words = (ctypes.c_uint64 * (3 * n)).from_buffer(page)
words[0] = 0  # so that the page is there to be read in this process, too

def count(at):
    def handler(*_):
        words[at] += 1
    return handler

def sleep():
    time.sleep(nap)

def poll():
    p = select.poll()
    p.register(pipe[0], select.POLLIN)
    p.poll(1000 * nap)

def futex():
    threading.Event().wait(nap)

def work():
    for _ in range(1000):
        pass
    time.sleep(nap)

def live(i):
    signal.signal(signal.SIGCONT, count(n + i))
    signal.signal(signal.SIGUSR1, count(2 * n + i))
    if i % 5 == 4:
        for f in (sleep, futex):
            threading.Thread(target=forever, args=(f, lambda: None), daemon=True).start()
    def tick():
        words[i] += 1
    forever((sleep, poll, futex, work, sleep)[i % 5], tick)

def forever(f, then):
    while True:
        f()
        then()

pipe = os.pipe()
for i in range(n):
    if os.fork() == 0:
        live(i)
with open(sys.argv[2], "w") as f:
    f.write("%d\n" % ctypes.addressof(words))
while True:
    signal.pause()
