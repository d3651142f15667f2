#include "zoo.h"
#include <sys/time.h>

/* Interval timers, POSIX timers, and the clocks that they run by. */

#define SECOND 1000000000LL
#define TEN_YEARS (3650 * 86400L) /* what a one-shot ITIMER_REAL may have as interval */

/* Armed timers may lose what passed while the process was not running, and CPU
 * clocks what the kernel had not accounted for. */
#define SLACK (120 * SECOND)

static volatile int ticks;
static volatile const char *bad_tick;

enum { PERIODIC, RELATIVE, ABSOLUTE, THREAD, SILENT, SILENT_PERIODIC, CPU_IDLE, CPU_ARMED, BOOT, OFF, TIMERS };
static struct {
	clockid_t clock;
	int notify, signo;
	int64_t first, interval;
	int absolute;
	int id;
	int64_t deadline; /* by the clock */
} t[TIMERS] = {
	[PERIODIC] = { CLOCK_MONOTONIC, SIGEV_SIGNAL, SIG(8), SECOND / 5, SECOND / 5 },
	[RELATIVE] = { CLOCK_REALTIME, SIGEV_SIGNAL, SIG(9), 1000 * SECOND, 0 },
	[ABSOLUTE] = { CLOCK_REALTIME, SIGEV_SIGNAL, SIG(9), 2000 * SECOND, 3 * SECOND, 1 },
	[THREAD] = { CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIG(10), 3000 * SECOND, 100 * SECOND },
	[SILENT] = { CLOCK_MONOTONIC, SIGEV_NONE, 0, 4000 * SECOND, 0 },
	[SILENT_PERIODIC] = { CLOCK_MONOTONIC, SIGEV_NONE, 0, SECOND / 1000, 5000 * SECOND },
	[CPU_IDLE] = { CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIG(9), 0, 0 },
	[CPU_ARMED] = { CLOCK_PROCESS_CPUTIME_ID, SIGEV_SIGNAL, SIG(9), 6000 * SECOND, 7000 * SECOND },
	[BOOT] = { CLOCK_BOOTTIME, SIGEV_SIGNAL, SIG(9), 8000 * SECOND, 0 },
	[OFF] = { CLOCK_MONOTONIC, SIGEV_SIGNAL, SIG(9), 0, 0 },
};
static int64_t itimer_end[3];
static char proc_timers[4096];
static int64_t monotonic, boot, real;

static void on_tick(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (sig != SIG(8) || info->si_code != SI_TIMER || info->si_value.sival_ptr != (void *)0x3000000000)
		bad_tick = "siginfo of a timer";
	ticks++;
}

static struct timespec spec(int64_t ns) { return (struct timespec){ ns / SECOND, ns % SECOND }; }
static int64_t ns(struct timespec s) { return s.tv_sec * SECOND + s.tv_nsec; }

static void read_timers(char *to)
{
	snprintf(to, sizeof proc_timers, "%s", slurp("/proc/self/timers"));
}

static void setup(void)
{
	struct sigaction sa = { .sa_sigaction = on_tick, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct itimerval one = { .it_value = { 1000, 0 } }, virt = { { 70, 500000 }, { 900, 0 } }, prof = { { 80, 1 }, { 800, 0 } };
	int id;

	must(sigaction(SIG(8), &sa, NULL), "sigaction");
	for (int i = 0; i < TIMERS; i++) {
		struct sigevent ev = { .sigev_notify = t[i].notify, .sigev_signo = t[i].signo };
		ev.sigev_value.sival_ptr = (void *)(0x3000000000 + i);
		if (t[i].notify == SIGEV_THREAD_ID)
			ev._sigev_un._tid = suspend_tid;
		if (i == THREAD) { /* leave a gap in the numbers */
			must(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, &id), "timer_create");
			must(syscall(SYS_timer_create, t[i].clock, &ev, &t[i].id), "timer_create");
			must(syscall(SYS_timer_delete, id), "timer_delete");
		} else {
			must(syscall(SYS_timer_create, t[i].clock, &ev, &t[i].id), "timer_create");
		}
		t[i].deadline = t[i].first ? now(t[i].clock) + t[i].first : 0;
		struct itimerspec its = { spec(t[i].interval), spec(t[i].absolute ? t[i].deadline : t[i].first) };
		must(syscall(SYS_timer_settime, t[i].id, t[i].absolute ? TIMER_ABSTIME : 0, &its, NULL), "timer_settime");
	}
	must(setitimer(ITIMER_REAL, &one, NULL), "setitimer");
	must(setitimer(ITIMER_VIRTUAL, &virt, NULL), "setitimer");
	must(setitimer(ITIMER_PROF, &prof, NULL), "setitimer");
	itimer_end[0] = now(CLOCK_MONOTONIC) + 1000 * SECOND;
	itimer_end[1] = 900 * SECOND;
	itimer_end[2] = 800 * SECOND;
	monotonic = now(CLOCK_MONOTONIC), boot = now(CLOCK_BOOTTIME), real = now(CLOCK_REALTIME);
	read_timers(proc_timers);
}

static int64_t off(int64_t a, int64_t b) { return a < b ? b - a : a - b; }

static void check_itimer(int which, long interval_sec, long interval_usec, int cpu)
{
	struct itimerval v;
	int64_t left;

	getitimer(which, &v);
	left = v.it_value.tv_sec * SECOND + v.it_value.tv_usec * 1000;
	want(v.it_interval.tv_sec == interval_sec && v.it_interval.tv_usec == interval_usec,
		"interval of itimer %d is %ld.%06ld", which, v.it_interval.tv_sec, v.it_interval.tv_usec);
	want(off(left + (cpu ? 0 : now(CLOCK_MONOTONIC)), itimer_end[which]) < SLACK, "itimer %d has %ld s left", which, (long)(left / SECOND));
}

static void check(void)
{
	char is[sizeof proc_timers];
	struct itimerval v;
	struct timespec nap = { 0, SECOND / 2 };
	int before = ticks;

	getitimer(ITIMER_REAL, &v);
	check_itimer(ITIMER_REAL, v.it_interval.tv_sec == TEN_YEARS ? TEN_YEARS : 0, 0, 0);
	check_itimer(ITIMER_VIRTUAL, 70, 500000, 1);
	check_itimer(ITIMER_PROF, 80, 1, 1);
	for (int i = 0; i < TIMERS; i++) {
		struct itimerspec its;
		int64_t left;
		if (syscall(SYS_timer_gettime, t[i].id, &its)) {
			fail("timer %d is gone", t[i].id);
			continue;
		}
		left = ns(its.it_value);
		want(ns(its.it_interval) == t[i].interval, "timer %d interval %ld", i, (long)ns(its.it_interval));
		if (i == PERIODIC)
			want(left > 0 && left <= t[i].interval, "periodic timer has %ld ns left", (long)left);
		else if (i == SILENT_PERIODIC)
			want(left > 0 && off(left + now(t[i].clock), t[i].deadline + t[i].interval) < SLACK, "timer %d has %ld ns left", i, (long)left);
		else if (!t[i].first)
			want(!left, "timer %d runs", i);
		else if (t[i].clock == CLOCK_PROCESS_CPUTIME_ID)
			want(off(left, t[i].first) < SLACK, "timer %d has %ld s left", i, (long)(left / SECOND));
		else
			want(off(left + now(t[i].clock), t[i].deadline) < SLACK, "timer %d has %ld s left", i, (long)(left / SECOND));
	}
	read_timers(is);
	want(!strcmp(is, proc_timers), "/proc/self/timers: %s", is);
	int64_t start = now(CLOCK_MONOTONIC), passed;
	do
		nanosleep(&nap, NULL);
	while ((passed = now(CLOCK_MONOTONIC) - start) < 10 * SECOND && ticks - before < 3);
	/* One may have been late, and one comes twice if its signal was waiting. */
	want(ticks - before >= 3 && ticks - before <= passed / t[PERIODIC].interval + 3,
		"periodic timer fired %d times in %ld ms", ticks - before, (long)(passed / 1000000));
	want(!bad_tick, "%s", bad_tick);
	/* Clocks go on where they were: far less passes than the two machines'
	 * uptimes differ by. */
	want(now(CLOCK_MONOTONIC) >= monotonic && off(now(CLOCK_MONOTONIC) - monotonic, now(CLOCK_REALTIME) - real) < SLACK,
		"CLOCK_MONOTONIC went from %ld to %ld ms", (long)(monotonic / 1000000), (long)(now(CLOCK_MONOTONIC) / 1000000));
	want(now(CLOCK_BOOTTIME) >= boot && off(now(CLOCK_BOOTTIME) - boot, now(CLOCK_REALTIME) - real) < SLACK, "CLOCK_BOOTTIME jumped");
	monotonic = now(CLOCK_MONOTONIC), boot = now(CLOCK_BOOTTIME), real = now(CLOCK_REALTIME);
}

const struct part timers = { "timers", setup, check };
