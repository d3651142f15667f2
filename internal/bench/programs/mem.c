/* mem BYTES [small]: a process with that much random memory, all of it touched, in
 * the pages that the kernel likes best or in small ones. Prints "ready", then
 * sleeps. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	size_t n = argc > 1 ? strtoull(argv[1], NULL, 0) / 8 : 0;
	uint64_t x = 88172645463325252ull;
	uint64_t *p = mmap(NULL, n * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (!n || p == MAP_FAILED) {
		perror("mem");
		return 1;
	}
	if (argc > 2)
		madvise(p, n * 8, MADV_NOHUGEPAGE);
	for (size_t i = 0; i < n; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		p[i] = x;
	}
	puts("ready");
	fflush(stdout);
	for (;;)
		pause();
}
