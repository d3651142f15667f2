/* ptyrun PIDFILE PROG...: runs PROG on a pty of its own for a while */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>
int main(int c, char **v)
{
	int m = posix_openpt(O_RDWR | O_NOCTTY); grantpt(m); unlockpt(m);
	char *n = ptsname(m); pid_t p = fork();
	if (!p) { setsid(); int s = open(n, O_RDWR); ioctl(s, TIOCSCTTY, 0); dup2(s, 0); dup2(s, 1); dup2(s, 2); close(m); if (s > 2) close(s); execv(v[2], v + 2); _exit(1); }
	FILE *f = fopen(v[1], "w"); fprintf(f, "%d", p); fclose(f); (void)c;
	if (fork()) return 0;
	setsid(); for (int i = 0; i < 3; i++) close(i); open("/dev/null", O_RDWR); sleep(8); return 0;
}
