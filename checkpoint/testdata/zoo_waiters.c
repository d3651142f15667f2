#include "zoo.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

/* Files without a name, which others wait on. */

#define SECOND 1000000000LL

static int count, ready, quiet[2], ep, ep_empty, periodic, once, alarm_once, fired, off, sigs;
static int64_t deadline, alarm_deadline;

static int timer(clockid_t clock, int flags, int64_t first, int64_t interval)
{
	struct itimerspec its = { { interval / SECOND, interval % SECOND }, { first / SECOND, first % SECOND } };
	int fd = must(timerfd_create(clock, TFD_CLOEXEC), "timerfd");

	must(timerfd_settime(fd, flags, &its, NULL), "timerfd");
	return fd;
}

static void watch(int fd, uint32_t events, uint64_t data)
{
	struct epoll_event e = { .events = events, .data.u64 = data };

	must(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e), "epoll");
}

static void setup(void)
{
	sigset_t set;

	count = must(eventfd(5, EFD_CLOEXEC), "eventfd");
	ready = must(eventfd(1, EFD_NONBLOCK), "eventfd");
	must(pipe(quiet), "pipe");
	ep = must(epoll_create1(EPOLL_CLOEXEC), "epoll");
	ep_empty = must(epoll_create1(0), "epoll");
	watch(ready, EPOLLIN, 0x1111222233334444);
	watch(quiet[0], EPOLLIN | EPOLLRDHUP, 0x5555666677778888);
	watch(count, EPOLLPRI, 0x9999aaaabbbbcccc);
	sigemptyset(&set);
	sigaddset(&set, SIG(7));
	sigs = must(signalfd(-1, &set, SFD_NONBLOCK), "signalfd");
	watch(sigs, EPOLLIN, 7);

	periodic = timer(CLOCK_MONOTONIC, 0, SECOND / 10, SECOND / 10);
	deadline = now(CLOCK_REALTIME) + 1000 * SECOND;
	once = timer(CLOCK_REALTIME, TFD_TIMER_ABSTIME, deadline, 0);
	alarm_deadline = now(CLOCK_BOOTTIME) + 2000 * SECOND;
	alarm_once = timer(CLOCK_BOOTTIME, 0, 2000 * SECOND, 500 * SECOND);
	fired = timer(CLOCK_MONOTONIC, 0, 1, 0);
	off = timer(CLOCK_MONOTONIC, 0, 0, 0);
}

static int64_t left(int fd, int64_t *interval)
{
	struct itimerspec its;

	timerfd_gettime(fd, &its);
	*interval = its.it_interval.tv_sec * SECOND + its.it_interval.tv_nsec;
	return its.it_value.tv_sec * SECOND + its.it_value.tv_nsec;
}

static int near(int64_t a, int64_t b) { return (a < b ? b - a : a - b) < 120 * SECOND; }

static void check(void)
{
	struct epoll_event e[8];
	struct signalfd_siginfo si;
	struct pollfd p = { .fd = fired, .events = POLLIN };
	uint64_t v = 0;
	int64_t interval, rest;

	want(read(count, &v, 8) == 8 && v == 5, "eventfd counted %ld", (long)v);
	v = 5;
	want(write(count, &v, 8) == 8, "eventfd");

	int n = epoll_wait(ep, e, 8, 0);
	want(n == 1 && e[0].data.u64 == 0x1111222233334444 && e[0].events == EPOLLIN, "epoll sees %d events", n);
	want(write(quiet[1], "x", 1) == 1 && epoll_wait(ep, e, 8, 0) == 2, "epoll misses an event");
	want(e[0].data.u64 == 0x5555666677778888 || e[1].data.u64 == 0x5555666677778888, "epoll data");
	want(read(quiet[0], &v, 1) == 1 && epoll_wait(ep, e, 8, 0) == 1, "epoll sees what is gone");
	want(epoll_wait(ep_empty, e, 8, 0) == 0, "empty epoll");

	want(read(sigs, &si, sizeof si) < 0 && errno == EAGAIN, "signalfd O_NONBLOCK");
	sigqueue(getpid(), SIG(7), (union sigval){ .sival_int = 4711 });
	want(epoll_wait(ep, e, 8, 0) == 2, "epoll misses a signal");
	want(read(sigs, &si, sizeof si) == sizeof si && si.ssi_signo == (unsigned)SIG(7) && si.ssi_int == 4711, "signalfd");

	want(read(periodic, &v, 8) == 8 && v >= 1, "periodic timerfd");
	want(read(periodic, &v, 8) == 8 && v >= 1, "periodic timerfd does not go on");
	rest = left(periodic, &interval);
	want(interval == SECOND / 10 && rest > 0 && rest <= interval, "periodic timerfd has %ld ns of %ld", (long)rest, (long)interval);
	rest = left(once, &interval);
	want(!interval && near(rest + now(CLOCK_REALTIME), deadline), "timerfd has %ld s left", (long)(rest / SECOND));
	rest = left(alarm_once, &interval);
	want(interval == 500 * SECOND && near(rest + now(CLOCK_BOOTTIME), alarm_deadline), "relative timerfd has %ld s left", (long)(rest / SECOND));
	want(poll(&p, 1, 0) == 1 && !left(fired, &interval), "timerfd that fired");
	p.fd = off;
	want(!left(off, &interval) && poll(&p, 1, 0) == 0, "timerfd that is off");
}

const struct part waiters = { "waiters", setup, check };
