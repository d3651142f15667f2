/* many N: N processes that sleep. Prints "ready" when all are there. */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	for (int n = argc > 1 ? atoi(argv[1]) : 0; n > 0; n--) {
		pid_t pid = fork();

		if (pid < 0) {
			perror("many");
			return 1;
		}
		if (pid == 0)
			for (;;)
				pause();
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
