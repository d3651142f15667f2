#include "zoo.h"
#include <sys/signalfd.h>

/* Actions, the main thread's mask, signals that wait. */

struct kernel_sigaction {
	void *handler;
	unsigned long flags;
	void *restorer;
	uint64_t mask;
};

static struct kernel_sigaction actions[65];
static uint64_t mask;
static sigset_t quit_set;
static volatile sig_atomic_t info_seen;

static void plain(int sig) { (void)sig; }

static void with_info(int sig, siginfo_t *info, void *context)
{
	(void)context;
	info_seen = sig == SIGWINCH && info->si_code == SI_TKILL && info->si_pid == getpid();
}

static void read_actions(struct kernel_sigaction *all)
{
	for (int sig = 1; sig <= 64; sig++)
		must(syscall(SYS_rt_sigaction, sig, NULL, &all[sig], 8), "rt_sigaction");
}

/* Two queued with values, one that was sent by kill. */
static void queue(void)
{
	must(sigqueue(getpid(), SIG(1), (union sigval){ .sival_ptr = (void *)0x1000000011 }), "sigqueue");
	must(sigqueue(getpid(), SIG(1), (union sigval){ .sival_ptr = (void *)0x1000000012 }), "sigqueue");
	must(kill(getpid(), SIGUSR2), "kill");
}

static void setup(void)
{
	struct sigaction sa = { .sa_handler = plain, .sa_flags = SA_RESTART };

	sigaddset(&sa.sa_mask, SIGHUP);
	sigaddset(&sa.sa_mask, SIG(20));
	must(sigaction(SIGINT, &sa, NULL), "sigaction");
	sa.sa_flags = SA_RESETHAND | SA_NODEFER | SA_ONSTACK;
	must(sigaction(SIGQUIT, &sa, NULL), "sigaction");
	sa.sa_flags = SA_NOCLDSTOP | SA_NOCLDWAIT;
	must(sigaction(SIGCHLD, &sa, NULL), "sigaction");
	sa.sa_flags = SA_SIGINFO;
	sa.sa_sigaction = with_info;
	sigfillset(&sa.sa_mask);
	must(sigaction(SIGWINCH, &sa, NULL), "sigaction");
	sa.sa_handler = SIG_IGN;
	must(sigaction(SIGPIPE, &sa, NULL), "sigaction");
	must(sigaction(SIG(29), &sa, NULL), "sigaction");
	queue();
	sigemptyset(&quit_set);
	sigaddset(&quit_set, SIGQUIT);
	sigaddset(&quit_set, SIG(25));
	must(sigprocmask(SIG_BLOCK, &quit_set, NULL), "mask");
	must(syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &mask, 8), "mask");
}

static void take(int sig, int code, uintptr_t value)
{
	struct timespec none = { 0, 0 };
	siginfo_t info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, sig);
	if (sigtimedwait(&set, &info, &none) != sig) {
		fail("pending signal %d is gone", sig);
		return;
	}
	want(info.si_code == code && info.si_pid == getpid() && info.si_uid == getuid(),
		"signal %d code %d pid %d uid %d", sig, info.si_code, info.si_pid, info.si_uid);
	want(code != SI_QUEUE || (uintptr_t)info.si_value.sival_ptr == value, "signal %d value %p", sig, info.si_value.sival_ptr);
}

static void check(void)
{
	struct kernel_sigaction is[65];
	sigset_t pending, empty;
	uint64_t m;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &m, 8);
	want(m == mask, "mask %lx", (long)m);
	if (!actions[SIGINT].handler)
		read_actions(actions); /* other parts set some, too */
	read_actions(is);
	for (int sig = 1; sig <= 64; sig++)
		want(!memcmp(&is[sig], &actions[sig], sizeof *is), "action of signal %d", sig);
	take(SIG(1), SI_QUEUE, 0x1000000011);
	take(SIG(1), SI_QUEUE, 0x1000000012);
	take(SIGUSR2, SI_USER, 0);
	sigpending(&pending);
	sigemptyset(&empty);
	want(!memcmp(&pending, &empty, 8), "more signals are pending: %lx", *(long *)&pending);
	queue();
	info_seen = 0;
	raise(SIGWINCH);
	want(info_seen, "siginfo of a handler");
}

const struct part signals = { "signals", setup, check };
