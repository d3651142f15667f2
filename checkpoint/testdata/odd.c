/* odd: a process with one piece of state that cannot be carried. Its argument says
 * which; "ready PID" names the process that has it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void must(long r, const char *what)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
}

static int file(int flags)
{
	int fd = open("odd-file", O_RDWR | O_CREAT | flags, 0600);
	must(fd, "odd-file");
	must(ftruncate(fd, 8192), "odd-file");
	return fd;
}

static void *wait_here(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static int wait_too(void *arg)
{
	wait_here(arg);
	return 0;
}

/* The last thread of a process whose leader exits: says so once that has happened. */
static void *orphan_thread(void *arg)
{
	char path[64], stat[512];
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/stat", getpid());
	do {
		usleep(1000);
		must((f = fopen(path, "r")) ? 0 : -1, path);
		if (!fgets(stat, sizeof stat, f))
			*stat = 0;
		fclose(f);
	} while (!strstr(stat, ") Z "));
	printf("ready %d\n", getpid());
	fflush(stdout);
	return wait_here(arg);
}

static void *time_thread(void *arg)
{
	timer_t t;
	struct itimerspec its = { { 0, 0 }, { 1000, 0 } };

	must(timer_create(CLOCK_THREAD_CPUTIME_ID, NULL, &t), "timer");
	must(timer_settime(t, 0, &its, NULL), "timer");
	return wait_here(arg);
}

int main(int argc, char **argv)
{
	const char *kind = argc > 1 ? argv[1] : "";
	int fds[2], fd;
	pid_t pid = 0;
	pthread_t thread;
	static char params[120], stack[1 << 16];
	static aio_context_t aio;
	void *page = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

#define is(name) (!strcmp(kind, name))
	if (is("unix")) {
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), kind);
	} else if (is("tcp")) {
		must(socket(AF_INET, SOCK_STREAM, 0), kind);
	} else if (is("deleted")) {
		file(0);
		must(unlink("odd-file"), kind);
	} else if (is("deleted mapping")) {
		fd = file(0);
		must(mmap(NULL, 8192, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED ? -1 : 0, kind);
		close(fd);
		must(unlink("odd-file"), kind);
	} else if (is("deleted cwd")) {
		mkdir("odd-dir", 0700);
		must(chdir("odd-dir"), kind);
		must(rmdir("../odd-dir"), kind);
	} else if (is("memfd")) {
		must(memfd_create("odd", 0), kind);
	} else if (is("child")) {
		if (!fork())
			wait_here(NULL);
	} else if (is("shared table")) {
		pid = getpid();
		must(clone(wait_too, stack + sizeof stack, CLONE_FILES | CLONE_PARENT | SIGCHLD, NULL), kind);
	} else if (is("shared memory")) {
		pid = getpid();
		must(clone(wait_too, stack + sizeof stack, CLONE_VM | CLONE_PARENT | SIGCHLD, NULL), kind);
	} else if (is("io_uring")) {
		must(syscall(SYS_io_uring_setup, 4, params), kind);
	} else if (is("aio")) {
		must(syscall(SYS_io_setup, 4, &aio), kind);
	} else if (is("uts")) {
		must(unshare(CLONE_NEWUTS), kind);
	} else if (is("net")) {
		must(unshare(CLONE_NEWNET), kind);
	} else if (is("mnt")) {
		must(unshare(CLONE_NEWNS), kind);
	} else if (is("pid")) {
		must(unshare(CLONE_NEWPID), kind);
		if (!(pid = fork()))
			wait_here(NULL);
	} else if (is("user")) {
		must(unshare(CLONE_NEWUSER), kind);
	} else if (is("traced")) {
		if (!(pid = fork()))
			wait_here(NULL);
		must(ptrace(PTRACE_SEIZE, pid, 0, 0), kind);
	} else if (is("userfaultfd")) {
		must(syscall(SYS_userfaultfd, O_CLOEXEC), kind);
	} else if (is("sysv")) {
		must(shmat(shmget(IPC_PRIVATE, 8192, IPC_CREAT | 0600), NULL, 0) == (void *)-1 ? -1 : 0, kind);
	} else if (is("pkey")) {
		must(pkey_mprotect(page, 4096, PROT_READ | PROT_WRITE, pkey_alloc(0, 0)), kind);
	} else if (is("inotify")) {
		must(inotify_init(), kind);
	} else if (is("semaphore")) {
		must(eventfd(1, EFD_SEMAPHORE), kind);
	} else if (is("packets")) {
		must(pipe2(fds, O_DIRECT), kind);
	} else if (is("flock")) {
		must(flock(file(0), LOCK_EX), kind);
	} else if (is("lock")) {
		must(lockf(file(0), F_TLOCK, 100), kind);
	} else if (is("ofd lock")) {
		struct flock l = { .l_type = F_RDLCK };
		must(fcntl(file(0), F_OFD_SETLK, &l), kind);
	} else if (is("lease")) {
		must(fcntl(file(0), F_SETLEASE, F_WRLCK), kind);
	} else if (is("epoll")) {
		struct epoll_event e = { .events = EPOLLIN };
		must(fd = epoll_create1(0), kind);
		must(pipe(fds), kind);
		must(epoll_ctl(fd, EPOLL_CTL_ADD, fds[0], &e), kind);
		must(dup(fds[0]), kind);
		close(fds[0]);
	} else if (is("thread clock")) {
		must(-pthread_create(&thread, NULL, time_thread, NULL), kind);
		usleep(200000);
	} else if (is("supervised")) {
		struct sock_filter f = { BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW };
		struct sock_fprog p = { 1, &f };
		must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), kind);
		must(fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &p), kind);
	} else if (is("strict")) {
		printf("ready %d\n", getpid());
		fflush(stdout);
		must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT), kind);
		for (;;)
			;
	} else if (is("leader gone")) {
		must(-pthread_create(&thread, NULL, orphan_thread, NULL), kind);
		syscall(SYS_exit, 0);
	} else if (is("tty")) {
		must(open("/dev/ttyS0", O_RDWR | O_NOCTTY), kind);
	} else if (is("device")) {
		must(open("/dev/kmsg", O_RDONLY), kind);
	} else if (!is("nothing")) {
		return 2;
	}
	printf("ready %d\n", pid ? pid : getpid());
	fflush(stdout);
	wait_here(NULL);
}
