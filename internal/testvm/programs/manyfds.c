/* manyfds [SECONDS]: one process that holds one or more of every kind of file and
 * mapping that an ordinary program has; then sleeps in pause() (or exits after
 * SECONDS). For tests of what is seen, not of what is restored. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int want(const char *what, int fd)
{
	if (fd < 0) {
		fprintf(stderr, "manyfds: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return fd;
}

static int file(const char *name, int flags)
{
	char path[128];
	int fd;

	snprintf(path, sizeof path, "/tmp/manyfds.%d.%s", getpid(), name);
	fd = want(path, open(path, O_RDWR | O_CREAT | flags, 0600));
	want("write", write(fd, path, strlen(path)));
	return fd;
}

static void deleted(void)
{
	char path[128];

	file("deleted", 0);
	snprintf(path, sizeof path, "/tmp/manyfds.%d.deleted", getpid());
	want("unlink", unlink(path));
}

static void inet(int family, int type)
{
	struct sockaddr_in6 a = { .sin6_family = family, .sin6_addr = in6addr_loopback };
	struct sockaddr_in a4 = { .sin_family = family, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct sockaddr *sa = family == AF_INET ? (void *)&a4 : (void *)&a;
	socklen_t len = family == AF_INET ? sizeof a4 : sizeof a;
	int fd = want("socket", socket(family, type, 0)), c;

	want("bind", bind(fd, sa, len));
	if (type != SOCK_STREAM)
		return;
	want("listen", listen(fd, 8));
	getsockname(fd, sa, &len);
	c = want("socket", socket(family, type, 0));
	want("connect", connect(c, sa, len));
	c = want("accept", accept(fd, NULL, NULL));
	want("write", write(c, "unread bytes", 12));
}

static void local(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = want("unix socket", socket(AF_UNIX, SOCK_STREAM, 0)), pair[2];

	snprintf(a.sun_path, sizeof a.sun_path, "/tmp/manyfds.%d.sock", getpid());
	unlink(a.sun_path);
	want("bind", bind(fd, (void *)&a, sizeof a));
	want("listen", listen(fd, 8));
	want("socketpair", socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
	want("send", send(pair[0], "in flight", 9, 0));
	want("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
	fd = want("netlink", socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
	want("bind netlink", bind(fd, (void *)&(struct sockaddr_nl){ .nl_family = AF_NETLINK }, sizeof(struct sockaddr_nl)));
}

static void events(void)
{
	struct itimerspec its = { { 3600, 0 }, { 1800, 0 } };
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u64 = 0x1122334455667788 };
	int ep = want("epoll", epoll_create1(EPOLL_CLOEXEC));
	int efd = want("eventfd", eventfd(42, EFD_NONBLOCK));
	int tfd = want("timerfd", timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
	int ifd = want("inotify", inotify_init1(0)), pipes[2];
	struct sigevent se = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 3 };
	timer_t timer;
	sigset_t set;

	want("timerfd_settime", timerfd_settime(tfd, 0, &its, NULL));
	want("inotify_add_watch", inotify_add_watch(ifd, "/tmp", IN_CREATE | IN_DELETE_SELF));
	sigemptyset(&set);
	sigaddset(&set, SIGHUP);
	want("signalfd", signalfd(-1, &set, 0));
	want("pipe", pipe2(pipes, O_NONBLOCK));
	want("write", write(pipes[1], "bytes in a pipe", 15));
	want("epoll_ctl", epoll_ctl(ep, EPOLL_CTL_ADD, efd, &ev));
	want("epoll_ctl", epoll_ctl(ep, EPOLL_CTL_ADD, tfd, &ev));
	want("epoll_ctl", epoll_ctl(ep, EPOLL_CTL_ADD, pipes[0], &ev));
	want("timer_create", timer_create(CLOCK_REALTIME, &se, &timer));
	want("timer_settime", timer_settime(timer, 0, &its, NULL));
}

static void *map(size_t len, int prot, int flags, int fd)
{
	void *p = mmap(NULL, len, prot, flags, fd, 0);

	if (p == MAP_FAILED)
		want("mmap", -1);
	return p;
}

static void mappings(void)
{
	const int rw = PROT_READ | PROT_WRITE;
	int fd = file("mapped", 0), mem = want("memfd", memfd_create("manyfds", MFD_ALLOW_SEALING));
	size_t page = 4096, huge = 2 << 20;
	char *p;

	want("ftruncate", ftruncate(fd, 16 * page));
	want("ftruncate", ftruncate(mem, 16 * page));
	strcpy(map(16 * page, rw, MAP_SHARED, fd), "shared file");
	strcpy(map(16 * page, rw, MAP_PRIVATE, fd), "private file");
	strcpy(map(16 * page, rw, MAP_SHARED, mem), "memfd");
	strcpy(map(4 * page, rw, MAP_SHARED | MAP_ANONYMOUS, -1), "shared anonymous");
	map(4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	map(4 * page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	strcpy(map(4 * page, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_STACK, -1), "grows down");
	p = map(4 * page, rw, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED, -1);
	want("mprotect", mprotect(p + page, page, PROT_READ));
	want("madvise", madvise(p + 2 * page, page, MADV_DONTFORK));
	p = map(2 * huge, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	p = (char *)(((size_t)p + huge - 1) & ~(huge - 1));
	madvise(p, huge, MADV_HUGEPAGE); /* a wish: the kernel may have none free */
	memset(p, 0x5a, huge);
}

static void *idle(void *arg)
{
	pthread_setname_np(pthread_self(), arg);
	for (;;)
		pause();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t t;
	int fd;

	file("plain", O_APPEND);
	fd = file("locked", O_CLOEXEC);
	want("flock", flock(fd, LOCK_EX));
	deleted();
	want("tmpfile", open("/tmp", O_TMPFILE | O_RDWR, 0600));
	want("directory", open("/usr", O_RDONLY | O_DIRECTORY));
	want("path", open("/etc/passwd", O_PATH));
	want("proc", open("/proc/self/status", O_RDONLY));
	want("pty", posix_openpt(O_RDWR | O_NOCTTY));
	want("dup", dup(fd));
	inet(AF_INET, SOCK_STREAM);
	inet(AF_INET6, SOCK_STREAM);
	inet(AF_INET, SOCK_DGRAM);
	inet(AF_INET6, SOCK_DGRAM);
	local();
	events();
	mappings();
	if (pthread_create(&t, NULL, idle, "idle-a") || pthread_create(&t, NULL, idle, "idle-b"))
		want("thread", -1);
	puts("ready");
	fflush(stdout);
	if (argc > 1)
		sleep(atoi(argv[1]));
	else
		for (;;)
			pause();
}
