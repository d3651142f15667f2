/* backtrace: prints the return addresses on its stack, as glibc finds them, and sleeps
 * there: in a signal handler on a stack of its own, within a callback of the C library,
 * compiled without frame pointers. */
#define _GNU_SOURCE
#include <execinfo.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

__attribute__((noinline, noclone)) void show_and_sleep(void)
{
	void *at[64];
	int n = backtrace(at, 64);

	for (int i = 0; i < n; i++)
		printf("%p\n", at[i]);
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}

__attribute__((noinline, noclone)) void handler(int sig)
{
	char room[300];

	memset(room, sig, sizeof room);
	show_and_sleep();
	printf("%d\n", room[7]);
}

__attribute__((noinline, noclone)) int deep(int n)
{
	volatile char room[n + 17]; /* a frame whose size is not known */

	room[n] = 1;
	if (n > 0)
		return deep(n - 1) + room[n];
	raise(SIGUSR1);
	return room[0];
}

static int compare(const void *a, const void *b)
{
	return deep(5) + *(const int *)a - *(const int *)b;
}

int main(void)
{
	static char stack[65536];
	stack_t ss = { .ss_sp = stack, .ss_size = sizeof stack };
	struct sigaction sa = { .sa_handler = handler, .sa_flags = SA_ONSTACK };
	int v[] = { 3, 1, 2 };

	if (sigaltstack(&ss, NULL) || sigaction(SIGUSR1, &sa, NULL))
		return 1;
	qsort(v, 3, sizeof v[0], compare);
	return v[0];
}
