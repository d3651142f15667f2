/* One of everything that CRIU images treat differently. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
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
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *thread(void *a) { for (;;) pause(); return a; }
static void nothing(int s) { (void)s; }

int main(int argc, char **argv)
{
	int p[2], sv[2], fd, i;
	pthread_t t;
	chdir(argv[1]);
	signal(SIGUSR1, nothing);
	sigset_t m; sigemptyset(&m); sigaddset(&m, SIGUSR2); sigprocmask(SIG_BLOCK, &m, NULL);
	raise(SIGUSR2);					/* pending */
	pipe(p); write(p[1], "unread bytes", 12);
	socketpair(AF_UNIX, SOCK_STREAM, 0, sv); write(sv[0], "queued", 6);
	socketpair(AF_UNIX, SOCK_DGRAM, 0, sv); write(sv[0], "one", 3); write(sv[0], "second", 6);
	struct sockaddr_un un = { AF_UNIX, "zoo.sock" };
	fd = socket(AF_UNIX, SOCK_STREAM, 0); bind(fd, (void *)&un, sizeof un); listen(fd, 5);
	struct sockaddr_in in = { AF_INET, htons(40123) };
	fd = socket(AF_INET, SOCK_STREAM, 0); i = 1; setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &i, sizeof i);
	bind(fd, (void *)&in, sizeof in); listen(fd, 5);
	fd = socket(AF_INET, SOCK_DGRAM, 0); bind(fd, (void *)&in, sizeof in);
	int ev = eventfd(7, 0);
	int ep = epoll_create1(0); struct epoll_event e = { EPOLLIN, { .u64 = 42 } };
	epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e); epoll_ctl(ep, EPOLL_CTL_ADD, p[0], &e);
	signalfd(-1, &m, 0);
	fd = timerfd_create(CLOCK_MONOTONIC, 0); struct itimerspec its = { {5, 0}, {3600, 0} }; timerfd_settime(fd, 0, &its, NULL);
	fd = inotify_init(); if (argc > 2) inotify_add_watch(fd, ".", IN_CREATE);
	fd = memfd_create("zoo", MFD_ALLOW_SEALING); ftruncate(fd, 16384); char *mf = mmap(NULL, 16384, 3, MAP_SHARED, fd, 0); strcpy(mf, "memfd");
	char *sh = mmap(NULL, 65536, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0); strcpy(sh + 8192, "shared");
	fd = open("regular", O_RDWR | O_CREAT | O_APPEND, 0644); write(fd, "0123456789", 10); flock(fd, LOCK_EX);
	fd = open("gone", O_RDWR | O_CREAT, 0600); for (i = 0; i < 5000; i++) write(fd, "ghost", 5); lseek(fd, 3, SEEK_SET); unlink("gone");
	fd = open("tiny", O_RDWR | O_CREAT, 0600); write(fd, "t", 1); unlink("tiny");
	fd = open("mapped", O_RDWR | O_CREAT, 0600); ftruncate(fd, 8192); char *mp = mmap(NULL, 8192, 3, MAP_PRIVATE, fd, 0); mp[4096] = 1; close(fd);
	mkfifo("fifo", 0600); fd = open("fifo", O_RDWR); write(fd, "fifo data", 9);
	if (argc > 2) { /* own IPC namespace */
		int s = shmget(0x1234, 10000, IPC_CREAT | 0600); strcpy(shmat(s, NULL, 0), "sysv");
		s = semget(0x1235, 3, IPC_CREAT | 0600); semctl(s, 1, SETVAL, 5);
		s = msgget(0x1236, IPC_CREAT | 0600); struct { long t; char b[20]; } mm = { 1, "message" };
		msgsnd(s, &mm, 7, 0); mm.t = 2; msgsnd(s, &mm, 16, 0);
	}
	timer_t tm; struct sigevent se = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1 };
	timer_create(CLOCK_MONOTONIC, &se, &tm); timer_settime(tm, 0, &its, NULL);
	stack_t ss = { .ss_sp = malloc(65536), .ss_size = 65536 }; sigaltstack(&ss, NULL);
	for (i = 0; i < 3; i++) pthread_create(&t, NULL, thread, NULL);
	if (!fork()) { if (!fork()) _exit(3); usleep(200000); for (;;) pause(); }	/* child with a zombie */
	struct sock_filter f[] = { BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW) };
	struct sock_fprog fp = { 1, f };
	if (!fork()) { prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &fp);
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &fp); setsid(); for (;;) pause(); }
	if (!fork()) { kill(getpid(), SIGSTOP); for (;;) pause(); }
	usleep(300000);
	fd = open("ready", O_CREAT | O_WRONLY, 0600); write(fd, "1", 1); close(fd);
	for (;;) pause();
}
