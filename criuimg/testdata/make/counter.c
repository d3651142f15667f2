/* Counts once a second; small and static so that its image set is small. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>
static volatile unsigned count;
static void tick(int sig) { char b[32]; int n = snprintf(b, sizeof b, "%u\n", ++count); (void)!write(1, b, n); (void)sig; }
int main(void)
{
	struct sigaction sa; struct itimerval it = { {1, 0}, {1, 0} };
	int p[2];
	memset(&sa, 0, sizeof sa); sa.sa_handler = tick; sigaction(SIGALRM, &sa, NULL);
	(void)!pipe(p); (void)!write(p[1], "unread", 6);
	setitimer(ITIMER_REAL, &it, NULL);
	for (;;) pause();
}
