/* target: a process to send signals to, which writes down all that it notices of them,
 * and its parent, which writes down what it is told of it.
 *
 *   target [-r] [-a] [-i] [-b] [-d] [-H] [-n] LOG MODE
 *   target send PID TID SIGNAL
 *
 * -r handlers with SA_RESTART; -a on an alternate stack; -i SIGUSR1 and SIGRTMIN+3 are
 * ignored; -b they are blocked; -d no handlers at all; -H handlers for all signals;
 * -n in a pid namespace of its own.
 * Else SIGUSR1, SIGUSR2, SIGTERM and SIGRTMIN+3 have handlers.
 *
 * MODE is what it does meanwhile. The second form sends a signal, to a process if TID is 0. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RT (34 + 3)

static int log_fd, restart, alternate, ignoring, blocking, defaults, all, container;
static volatile sig_atomic_t unblock;
static __thread int thread_index;
static char stack[1 << 16];
static sigset_t watched;

static void say(const char *format, ...)
{
	char line[200];
	int saved = errno;
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	if (write(log_fd, line, n) != n)
		_exit(3);
	errno = saved;
}

static void die(const char *what)
{
	say("failed %s: %s\n", what, strerror(errno));
	_exit(2);
}

static void result(const char *call, long r)
{
	if (r >= 0)
		say("%s returned %ld\n", call, r);
	else
		say("%s failed with %s\n", call, errno == EINTR ? "EINTR" : strerror(errno));
}

static void caught(const char *how, int sig, int code, int pid, int uid)
{
	say("%s %d code %d pid %d uid %d thread %d\n", how, sig, code, pid, uid, thread_index);
}

static void handler(int sig, siginfo_t *info, void *context)
{
	char here;
	(void)context;
	int alt = &here >= stack && &here < stack + sizeof stack;
	caught(alt ? "altstack handler" : "handler", sig, info->si_code, info->si_pid, info->si_uid);
	if (sig == SIGUSR2)
		unblock = 1;
}

static void *hole(void)
{
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fd < 0)
		die("userfaultfd");
	struct uffdio_api api = { .api = UFFD_API };
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct uffdio_register range = { .range = { (uintptr_t)p, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range))
		die("userfaultfd");
	return p;
}

/* Holds a pipe's lock until it is killed: the page that it writes never comes. */
static void hold(int fd)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (write(fd, hole(), 4096) < 0)
		die("write");
	_exit(0);
}

struct deadline {
	uint32_t size, policy;
	uint64_t flags;
	int32_t nice;
	uint32_t priority;
	uint64_t runtime, deadline, period;
};

static void schedule(const char *mode)
{
	struct sched_param fifo = { .sched_priority = 10 };
	struct deadline d = {
		.size = sizeof d, .policy = SCHED_DEADLINE, .runtime = 5000000, .deadline = 20000000, .period = 20000000,
	};
	if (!strncmp(mode, "fifo", 4) && sched_setscheduler(0, SCHED_FIFO, &fifo))
		die("SCHED_FIFO");
	if (!strncmp(mode, "deadline", 8) && syscall(SYS_sched_setattr, 0, &d, 0))
		die("SCHED_DEADLINE");
	if (!strcmp(mode, "runnable") && setpriority(PRIO_PROCESS, 0, 10))
		die("nice");
}

static void work(void)
{
	struct timespec start, now, rest = { 0, 2000000 };
	clock_gettime(CLOCK_MONOTONIC, &start);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < 2000000);
	nanosleep(&rest, NULL);
}

static void *in_thread(void *index)
{
	thread_index = (intptr_t)index;
	struct timespec long_time = { 100000, 0 };
	for (;;)
		nanosleep(&long_time, NULL);
	return NULL;
}

static void start_threads(int n)
{
	for (intptr_t i = 1; i <= n; i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, in_thread, (void *)i))
			die("pthread_create");
	}
}

static void run(const char *mode, int held)
{
	int ends[2], ep = epoll_create1(0), sfd = -1;
	uint32_t word = 0;
	char c, *buffer = NULL;
	struct timespec long_time = { 100000, 0 };
	siginfo_t info;
	struct signalfd_siginfo sinfo;
	if (pipe(ends))
		die("pipe");
	struct epoll_event ev = { .events = EPOLLIN };
	epoll_ctl(ep, EPOLL_CTL_ADD, ends[0], &ev);
	struct pollfd pfd = { ends[0], POLLIN, 0 };
	if (!strcmp(mode, "sigtimedwait") || !strcmp(mode, "signalfd") || !strcmp(mode, "signalfd-poll"))
		sigprocmask(SIG_BLOCK, &watched, NULL);
	if (!strncmp(mode, "signalfd", 8))
		sfd = signalfd(-1, &watched, 0);
	if (!strcmp(mode, "kernel"))
		buffer = mmap(NULL, 64 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int zero = open("/dev/zero", O_RDONLY);
	struct iovec local = { &c, 1 }, remote = { NULL, 1 };
	if (!strcmp(mode, "killable"))
		remote.iov_base = hole();
	if (!strcmp(mode, "threads"))
		start_threads(2);
	if (!strcmp(mode, "leader")) {
		start_threads(1);
		say("ready\n");
		syscall(SYS_exit, 0);
	}
	if (!strcmp(mode, "traced"))
		ptrace(PTRACE_TRACEME, 0, 0, 0);
	schedule(mode);
	say("ready\n");
	if (!strcmp(mode, "zombie"))
		_exit(0);
	for (;;) {
		if (!strcmp(mode, "spin") || !strcmp(mode, "runnable"))
			__asm__ volatile("pause");
		else if (!strcmp(mode, "kernel")) {
			/* The same 16 pages over and over: memory is not what it is about. */
			struct iovec v[1024];
			for (int i = 0; i < 1024; i++)
				v[i] = (struct iovec){ buffer, 1 << 16 };
			if (readv(zero, v, 1024) < 0 && errno != EINTR)
				die("readv");
		} else if (!strcmp(mode, "nanosleep"))
			result("nanosleep", nanosleep(&long_time, NULL));
		else if (!strcmp(mode, "pause") || !strcmp(mode, "threads") || !strcmp(mode, "traced") || !strcmp(mode, "fifo-asleep"))
			result("pause", pause());
		else if (!strcmp(mode, "futex"))
			result("futex", syscall(SYS_futex, &word, FUTEX_WAIT, 0, NULL, NULL, 0));
		else if (!strcmp(mode, "epoll"))
			result("epoll_wait", epoll_wait(ep, &ev, 1, -1));
		else if (!strcmp(mode, "poll"))
			result("poll", poll(&pfd, 1, -1));
		else if (!strcmp(mode, "pipe"))
			result("read", read(ends[0], &c, 1));
		else if (!strcmp(mode, "sigtimedwait")) {
			long r = sigtimedwait(&watched, &info, &long_time);
			if (r > 0)
				caught("sigtimedwait", r, info.si_code, info.si_pid, info.si_uid);
			else
				result("sigtimedwait", r);
		} else if (!strncmp(mode, "signalfd", 8)) {
			struct pollfd sp = { sfd, POLLIN, 0 };
			if (!strcmp(mode, "signalfd-poll") && poll(&sp, 1, -1) < 0)
				result("poll", -1);
			long r = read(sfd, &sinfo, sizeof sinfo);
			if (r == sizeof sinfo)
				caught("signalfd", sinfo.ssi_signo, sinfo.ssi_code, sinfo.ssi_pid, sinfo.ssi_uid);
			else
				result("read of a signalfd", r);
		} else if (!strcmp(mode, "vfork")) {
			if (!vfork()) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				for (;;)
					syscall(SYS_pause);
			}
		} else if (!strcmp(mode, "killable"))
			result("process_vm_readv", process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
		else if (!strcmp(mode, "uninterruptible")) {
			struct timespec moment = { 0, 1000000 };
			if (write(held, "", 1) < 0)
				die("write");
			nanosleep(&moment, NULL);
		} else if (!strcmp(mode, "fifo") || !strcmp(mode, "deadline"))
			work();
		else if (!strcmp(mode, "unblock")) {
			sigset_t most = watched;
			sigdelset(&most, SIGUSR2);
			sigprocmask(SIG_BLOCK, &watched, NULL);
			sigsuspend(&most);
			if (unblock) {
				unblock = 0;
				say("unblocks\n");
				sigprocmask(SIG_UNBLOCK, &watched, NULL);
			}
		} else
			die(mode);
	}
}

static void target(const char *mode, int held)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	struct rlimit core = { 1 << 20, 1 << 20 };
	setrlimit(RLIMIT_CORE, &core);
	stack_t alt = { .ss_sp = stack, .ss_size = sizeof stack };
	if (alternate)
		sigaltstack(&alt, NULL);
	struct sigaction a = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO };
	a.sa_flags |= (restart ? SA_RESTART : 0) | (alternate ? SA_ONSTACK : 0);
	for (int s = 1; s <= 64; s++) {
		int ours = sigismember(&watched, s) == 1;
		if (s != SIGKILL && s != SIGSTOP && !defaults && (all || ours))
			sigaction(s, &a, NULL);
	}
	sigset_t some;
	sigemptyset(&some);
	sigaddset(&some, SIGUSR1);
	sigaddset(&some, RT);
	if (ignoring) {
		signal(SIGUSR1, SIG_IGN);
		signal(RT, SIG_IGN);
	}
	if (blocking)
		sigprocmask(SIG_BLOCK, &some, NULL);
	run(mode, held);
}

static const char *code(int c)
{
	static const char *const names[] = { "", "CLD_EXITED", "CLD_KILLED", "CLD_DUMPED", "CLD_TRAPPED", "CLD_STOPPED", "CLD_CONTINUED" };
	return c > 0 && c < 7 ? names[c] : "unknown";
}

int main(int argc, char **argv)
{
	int opt, held[2] = { -1, -1 };
	if (argc == 5 && !strcmp(argv[1], "send")) {
		int pid = atoi(argv[2]), tid = atoi(argv[3]), sig = atoi(argv[4]);
		return (tid ? syscall(SYS_tgkill, pid, tid, sig) : kill(pid, sig)) ? errno : 0;
	}
	while ((opt = getopt(argc, argv, "raibdHn")) > 0) {
		restart |= opt == 'r';
		alternate |= opt == 'a';
		ignoring |= opt == 'i';
		blocking |= opt == 'b';
		defaults |= opt == 'd';
		all |= opt == 'H';
		container |= opt == 'n';
	}
	if (argc - optind != 2)
		return 1;
	const char *mode = argv[optind + 1];
	log_fd = open(argv[optind], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (log_fd < 0 || chdir("/tmp"))
		return 1;
	sigemptyset(&watched);
	sigaddset(&watched, SIGUSR1);
	sigaddset(&watched, SIGUSR2);
	sigaddset(&watched, SIGTERM);
	sigaddset(&watched, RT);
	if (!strcmp(mode, "uninterruptible")) {
		if (pipe(held))
			die("pipe");
		int holder = fork();
		if (!holder)
			hold(held[1]);
		say("holder %d\n", holder);
	}
	if (container && unshare(CLONE_NEWPID))
		die("unshare");
	int pid = fork();
	if (!pid)
		target(mode, held[1]);
	say("target %d\n", pid);
	if (!strcmp(mode, "zombie"))
		for (;;)
			pause();
	for (;;) {
		siginfo_t i;
		if (waitid(P_PID, pid, &i, WEXITED | WSTOPPED | WCONTINUED)) {
			if (errno == EINTR)
				continue;
			return 1;
		}
		say("parent: %s %d\n", code(i.si_code), i.si_status);
		if (i.si_code == CLD_EXITED || i.si_code == CLD_KILLED || i.si_code == CLD_DUMPED)
			return 0;
	}
}
