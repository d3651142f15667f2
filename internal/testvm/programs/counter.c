/* counter [MILLISECONDS]: prints 1, 2, 3 ... one number per timer signal.
 * The smallest process whose life shows: it sleeps in pause() and wakes by
 * ITIMER_REAL. A number missing or printed twice is an error of whoever moved it. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>

static unsigned long count;

static void tick(int sig)
{
	char line[32];
	int n = 0;
	unsigned long v = ++count;

	(void)sig;
	line[sizeof line - ++n] = '\n';
	do {
		line[sizeof line - ++n] = '0' + v % 10;
	} while (v /= 10);
	if (write(1, line + sizeof line - n, n) != n)
		_exit(3);
}

int main(int argc, char **argv)
{
	long ms = argc > 1 ? atol(argv[1]) : 100;
	struct sigaction sa = { .sa_handler = tick };
	struct itimerval it;

	if (ms <= 0) {
		fprintf(stderr, "usage: counter [MILLISECONDS]\n");
		return 2;
	}
	it.it_interval.tv_sec = ms / 1000;
	it.it_interval.tv_usec = ms % 1000 * 1000;
	it.it_value = it.it_interval;
	if (sigaction(SIGALRM, &sa, NULL) || setitimer(ITIMER_REAL, &it, NULL)) {
		perror("counter");
		return 1;
	}
	for (;;)
		pause();
}
