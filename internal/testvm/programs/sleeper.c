/* sleeper: threads that block in a chosen way and can prove that nothing was lost.
 *
 *   sleeper [-t THREADS] [-o FILE] [-i MS] [-k KIB] MODE
 *
 * MODE: pause nanosleep read fifo pty recv futex epoll poll spin mixed
 *
 * With -t 1 and more (default 1) the main thread is the controller; the workers
 * block in MODE and nothing touches them until a check. With -t 0 the main thread
 * itself blocks in MODE, and a check is a signal handler in it (SA_RESTART).
 *
 * A check happens on SIGUSR1 and, with -i, every MS milliseconds. It appends one
 * line to FILE (default: standard output): "N OK ..." or "N FAIL reason". It wakes
 * every worker the natural way for its mode and waits until the worker has seen what
 * it was sent; then sums a random buffer of KIB KiB (default 1024), of which it has
 * changed a word. Workers hold a pattern in all vector registers while they block,
 * and verify it whenever they wake. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum mode { PAUSE, NANOSLEEP, READ, FIFO, PTY, RECV, FUTEX, EPOLL, POLL, SPIN, MODES };

static const char *const names[MODES] = {
	"pause", "nanosleep", "read", "fifo", "pty", "recv", "futex", "epoll", "poll", "spin",
};

#define MAX_THREADS 256
#define TOKEN "token %010u\n"
#define TOKEN_LEN 17

struct worker {
	enum mode mode;
	int index;
	pthread_t thread;
	int in, out, ep;      /* in: what it reads; out: how it is woken */
	uint32_t word;        /* futex */
	unsigned sent;        /* wakes asked for, by the controller */
	unsigned got;         /* wakes seen, by the worker */
	unsigned spurious;    /* returns that nobody asked for: EINTR after a restore */
	const char *error;
	uint8_t pattern[16][32], after[16][32];
} __attribute__((aligned(64)));

static struct worker workers[MAX_THREADS];
static int nthreads = 1, have_avx, out_fd = 1;
static const char *out_name = "/tmp/sleeper";
static uint64_t *buffer, buffer_sum;
static size_t buffer_words = 1024 << 7;
static unsigned checks;
static __thread int tls_index = -1;

static void die(const char *what)
{
	fprintf(stderr, "sleeper: %s: %s\n", what, strerror(errno));
	exit(1);
}

/* The vector registers are live across the system call (or the loop), which the
 * kernel promises to preserve. */
#define LOAD(n) "vmovdqu " #n "*32(%[p]), %%ymm" #n "\n\t"
#define SAVE(n) "vmovdqu %%ymm" #n ", " #n "*32(%[a])\n\t"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define YMM "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
	"xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

__attribute__((target("avx")))
static void verify(struct worker *w)
{
	if (memcmp(w->pattern, w->after, sizeof w->pattern))
		w->error = "vector registers changed";
	if (tls_index != w->index)
		w->error = "thread-local variable changed";
}

__attribute__((target("avx")))
static long call(struct worker *w, long nr, long a1, long a2, long a3, long a4, long a5, long a6)
{
	register long r10 __asm__("r10") = a4, r8 __asm__("r8") = a5, r9 __asm__("r9") = a6;
	long ret = nr;

	if (!have_avx) {
		__asm__ volatile("syscall" : "+a"(ret)
			: "D"(a1), "S"(a2), "d"(a3), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
		return ret;
	}
	__asm__ volatile(ALL(LOAD) "syscall\n\t" ALL(SAVE) "vzeroupper" : "+a"(ret)
		: "D"(a1), "S"(a2), "d"(a3), "r"(r10), "r"(r8), "r"(r9), [p] "b"(w->pattern), [a] "r"(w->after)
		: "rcx", "r11", "memory", YMM);
	verify(w);
	return ret;
}

__attribute__((target("avx")))
static void spin(struct worker *w)
{
	long n = 1 << 16;

	if (!have_avx) {
		__asm__ volatile("1: dec %[n]\n\tjnz 1b" : [n] "+r"(n) : : "cc");
		return;
	}
	__asm__ volatile(ALL(LOAD) "1: dec %[n]\n\tjnz 1b\n\t" ALL(SAVE) "vzeroupper" : [n] "+r"(n)
		: [p] "r"(w->pattern), [a] "r"(w->after) : "cc", "memory", YMM);
	verify(w);
}

static void set(unsigned *p, unsigned v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static unsigned load(unsigned *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }

/* seen is called by the worker for each return of its system call. */
static void seen(struct worker *w, int wanted)
{
	if (wanted)
		set(&w->got, w->got + 1);
	else
		w->spurious++;
}

static void token(struct worker *w, long n, const char *text)
{
	char want[32];

	if (n == -EINTR || n == -EAGAIN) {
		seen(w, 0);
		return;
	}
	snprintf(want, sizeof want, TOKEN, w->got + 1);
	if (n != TOKEN_LEN || memcmp(text, want, TOKEN_LEN))
		w->error = n < 0 ? "read failed" : "wrong data arrived";
	seen(w, 1);
}

static void block(struct worker *w)
{
	struct timespec hour = { 3600, 0 };
	struct epoll_event ev;
	struct pollfd pfd = { .fd = w->in, .events = POLLIN };
	char text[64];
	uint64_t v;
	long r;

	switch (w->mode) {
	case PAUSE:
		r = call(w, SYS_pause, 0, 0, 0, 0, 0, 0);
		seen(w, load(&w->sent) > w->got && r == -EINTR);
		break;
	case NANOSLEEP:
		r = call(w, SYS_nanosleep, (long)&hour, (long)&hour, 0, 0, 0, 0);
		seen(w, load(&w->sent) > w->got && r == -EINTR);
		break;
	case READ: case FIFO: case PTY:
		token(w, call(w, SYS_read, w->in, (long)text, sizeof text, 0, 0, 0), text);
		break;
	case RECV:
		token(w, call(w, SYS_recvfrom, w->in, (long)text, sizeof text, 0, 0, 0), text);
		break;
	case FUTEX:
		call(w, SYS_futex, (long)&w->word, FUTEX_WAIT, w->got, 0, 0, 0);
		seen(w, load(&w->word) > w->got);
		break;
	case EPOLL:
		r = call(w, SYS_epoll_wait, w->ep, (long)&ev, 1, -1, 0, 0);
		if (r == 1 && (ev.data.u32 != (uint32_t)w->index || read(w->in, &v, 8) != 8 || v != 1))
			w->error = "wrong event";
		seen(w, r == 1);
		break;
	case POLL:
		r = call(w, SYS_poll, (long)&pfd, 1, -1, 0, 0, 0);
		if (r == 1)
			token(w, read(w->in, text, sizeof text), text);
		else
			seen(w, 0);
		break;
	case SPIN:
		spin(w);
		if (load(&w->sent) > w->got)
			seen(w, 1);
		break;
	case MODES:
		break;
	}
}

static void *work(void *arg)
{
	struct worker *w = arg;
	char name[16];

	tls_index = w->index;
	snprintf(name, sizeof name, "%s-%d", names[w->mode], w->index);
	if (nthreads)
		pthread_setname_np(pthread_self(), name);
	for (;;)
		block(w);
	return NULL;
}

static void wake(struct worker *w)
{
	char text[32];
	uint64_t one = 1;
	ssize_t n = 0;

	set(&w->sent, w->sent + 1);
	switch (w->mode) {
	case PAUSE: case NANOSLEEP:
		n = -pthread_kill(w->thread, SIGUSR2);
		break;
	case FUTEX:
		set(&w->word, w->sent);
		syscall(SYS_futex, &w->word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
		break;
	case EPOLL:
		n = write(w->out, &one, 8);
		break;
	case SPIN: case MODES:
		break;
	default:
		snprintf(text, sizeof text, TOKEN, w->sent);
		n = write(w->out, text, TOKEN_LEN);
	}
	if (n < 0)
		w->error = "could not wake it";
}

static void prepare(struct worker *w)
{
	int fds[2] = { -1, -1 };
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = w->index };
	char path[4096];

	if (getrandom(w->pattern, sizeof w->pattern, 0) != sizeof w->pattern)
		die("getrandom");
	switch (w->mode) {
	case READ: case POLL:
		if (pipe(fds))
			die("pipe");
		break;
	case FIFO:
		snprintf(path, sizeof path, "%s.fifo.%d", out_name, w->index);
		unlink(path);
		if (mkfifo(path, 0600) || (fds[0] = fds[1] = open(path, O_RDWR)) < 0)
			die(path);
		break;
	case PTY:
		fds[1] = posix_openpt(O_RDWR | O_NOCTTY);
		if (fds[1] < 0 || grantpt(fds[1]) || unlockpt(fds[1]) ||
		    (fds[0] = open(ptsname(fds[1]), O_RDWR | O_NOCTTY)) < 0)
			die("pty");
		break;
	case RECV:
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
			die("socketpair");
		break;
	case EPOLL:
		w->ep = epoll_create1(0);
		fds[0] = fds[1] = eventfd(0, 0);
		if (w->ep < 0 || fds[0] < 0 || epoll_ctl(w->ep, EPOLL_CTL_ADD, fds[0], &ev))
			die("epoll");
		break;
	default:
		break;
	}
	w->in = fds[0];
	w->out = fds[1];
}

static uint64_t sum(void)
{
	uint64_t s = 14695981039346656037u;

	for (size_t i = 0; i < buffer_words; i++)
		s = (s ^ buffer[i]) * 1099511628211u;
	return s;
}

static const char *check_workers(void)
{
	for (int i = 0; i < nthreads; i++)
		wake(&workers[i]);
	for (int i = 0; i < nthreads; i++) {
		struct worker *w = &workers[i];
		for (int ms = 0; load(&w->got) != w->sent; ms++) {
			if (ms == 10000)
				return "a worker did not wake";
			usleep(1000);
			/* The signal may have come between two calls of pause(). */
			if (ms % 500 == 499 && (w->mode == PAUSE || w->mode == NANOSLEEP))
				pthread_kill(w->thread, SIGUSR2);
		}
	}
	return NULL;
}

static void check(void)
{
	const char *error = nthreads ? check_workers() : NULL;
	unsigned spurious = 0, wakes = 0, bad = 0;
	char line[256];
	int n;

	for (int i = 0; i < (nthreads ? nthreads : 1); i++) {
		spurious += workers[i].spurious;
		wakes += workers[i].got;
		if (workers[i].error) {
			error = workers[i].error;
			bad = i;
		}
	}
	if (sum() != buffer_sum)
		error = "buffer changed";
	checks++;
	buffer[checks * 509 % buffer_words] += checks;
	buffer_sum = sum();
	n = snprintf(line, sizeof line, "%u %s%s wakes=%u spurious=%u worker=%u avx=%d\n", checks,
		error ? "FAIL " : "OK", error ? error : "", wakes, spurious, bad, have_avx);
	if (write(out_fd, line, n) != n)
		_exit(3);
}

static void on_check(int sig)
{
	int e = errno;

	(void)sig;
	check();
	errno = e;
}

static void on_wake(int sig) { (void)sig; }

static void control(long ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000 };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	for (;;) {
		int sig = sigtimedwait(&set, NULL, ms ? &ts : NULL);
		if (sig == SIGUSR1 || errno == EAGAIN)
			check();
	}
}

static void alone(long ms)
{
	struct sigaction sa = { .sa_handler = on_check, .sa_flags = SA_RESTART };
	struct itimerval it = { { ms / 1000, ms % 1000 * 1000 }, { ms / 1000, ms % 1000 * 1000 } };

	sigaddset(&sa.sa_mask, SIGALRM);
	sigaddset(&sa.sa_mask, SIGUSR1);
	if (sigaction(SIGUSR1, &sa, NULL) || sigaction(SIGALRM, &sa, NULL) || setitimer(ITIMER_REAL, &it, NULL))
		die("timer");
	work(&workers[0]);
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_wake };
	enum mode mode = MODES;
	sigset_t set;
	long ms = 0;
	int c, mixed;

	while ((c = getopt(argc, argv, "t:o:i:k:")) != -1) {
		switch (c) {
		case 't': nthreads = atoi(optarg); break;
		case 'o': out_name = optarg; break;
		case 'i': ms = atol(optarg); break;
		case 'k': buffer_words = strtoul(optarg, NULL, 10) << 7; break;
		default: return 2;
		}
	}
	mixed = optind < argc && !strcmp(argv[optind], "mixed");
	for (int m = 0; optind < argc && m < MODES; m++)
		if (!strcmp(argv[optind], names[m]))
			mode = m;
	if ((mode == MODES && !mixed) || nthreads < 0 || nthreads > MAX_THREADS || !buffer_words) {
		fprintf(stderr, "usage: sleeper [-t THREADS] [-o FILE] [-i MS] [-k KIB] MODE\n");
		return 2;
	}
	if (strcmp(out_name, "/tmp/sleeper") && (out_fd = open(out_name, O_WRONLY | O_CREAT | O_APPEND, 0644)) < 0)
		die(out_name);
	__builtin_cpu_init();
	have_avx = __builtin_cpu_supports("avx") != 0;
	buffer = mmap(NULL, buffer_words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		die("mmap");
	for (size_t i = 0; i < buffer_words; i += 32)
		if (getrandom(buffer + i, 256, 0) != 256)
			die("getrandom");
	buffer_sum = sum();
	sigaction(SIGUSR2, &sa, NULL);
	for (int i = 0; i < (nthreads ? nthreads : 1); i++) {
		workers[i].mode = mixed ? (enum mode)(i % MODES) : mode;
		workers[i].index = i;
		prepare(&workers[i]);
	}
	if (!nthreads)
		alone(ms);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL); /* for the controller alone */
	for (int i = 0; i < nthreads; i++)
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("pthread_create");
	control(ms);
}
