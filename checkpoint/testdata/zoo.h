/* zoo: a process with as much state as one process can have, which it can check.
 *
 * Each part sets something up and later says whether it is still so. On SIGUSR1 the
 * process checks everything and writes "N OK" or "N FAIL what, what" to standard
 * output. Every check leaves things as it found them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SIG(n) (34 + 1 + (n)) /* what the C library leaves of the real-time signals */

struct part {
	const char *name;
	void (*setup)(void);
	void (*check)(void);
};

extern const struct part signals, timers, memory, files, waiters, attributes, filters;

/* In main thread only. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define want(cond, ...) do { if (!(cond)) fail(__VA_ARGS__); } while (0)

/* must ends the process if a step of setting up fails; returns r. */
long must(long r, const char *what);

int64_t now(clockid_t clock); /* ns */
void fill(void *p, size_t len, uint64_t seed);
int intact(const void *p, size_t len, uint64_t seed);
/* Reads a file whole into a static buffer, which the next call reuses. */
char *slurp(const char *path);

/* Two threads that wait while the process is moved. check_threads asks each to
 * look at what is its own; their complaints are collected. */
void start_threads(void);
void check_threads(void);
extern pid_t holder_tid, suspend_tid;
extern pthread_t holder, suspender;
