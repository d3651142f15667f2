#include "zoo.h"
#include <stdarg.h>

static char complaints[4096];

void fail(const char *format, ...)
{
	size_t n = strlen(complaints);
	va_list ap;

	n += snprintf(complaints + n, sizeof complaints - n, "%s", n ? ", " : "");
	if (n >= sizeof complaints - 1)
		return;
	va_start(ap, format);
	vsnprintf(complaints + n, sizeof complaints - n, format, ap);
	va_end(ap);
}

long must(long r, const char *what)
{
	if (r < 0) {
		dprintf(1, "cannot set up %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return r;
}

int64_t now(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static uint64_t next(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

void fill(void *p, size_t len, uint64_t seed)
{
	uint64_t s = seed * 2654435761u + 1;

	for (uint8_t *b = p; len--; b++)
		*b = next(&s) >> 32;
}

int intact(const void *p, size_t len, uint64_t seed)
{
	uint64_t s = seed * 2654435761u + 1;

	for (const uint8_t *b = p; len--; b++)
		if (*b != (uint8_t)(next(&s) >> 32))
			return 0;
	return 1;
}

char *slurp(const char *path)
{
	static char buf[1 << 17];
	size_t n = 0;
	ssize_t r;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	while (fd >= 0 && n < sizeof buf - 1 && (r = read(fd, buf + n, sizeof buf - 1 - n)) > 0)
		n += r;
	if (fd >= 0)
		close(fd);
	buf[n] = 0;
	return buf;
}

/* filters come last: they forbid something. attributes give up rights. */
static const struct part *const parts[] = {
	&signals, &timers, &waiters, &memory, &files, &attributes, &filters,
};

int main(void)
{
	char line[8192];
	sigset_t set;
	int n = 0;

	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigaddset(&set, SIGUSR2);
	for (int i = 1; i <= 7; i++)
		sigaddset(&set, SIG(i));
	sigprocmask(SIG_SETMASK, &set, NULL); /* threads inherit it */
	start_threads();
	for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
		parts[i]->setup();
	dprintf(1, "ready\n");
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	for (;;) {
		if (sigwaitinfo(&set, NULL) != SIGUSR1)
			continue; /* a handler ran */
		complaints[0] = 0;
		check_threads();
		for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
			size_t before = strlen(complaints);
			parts[i]->check();
			if (strlen(complaints) != before)
				fail("[%s]", parts[i]->name);
		}
		snprintf(line, sizeof line, "%d %s%s\n", ++n, complaints[0] ? "FAIL " : "OK", complaints);
		if (write(1, line, strlen(line)) < 0)
			exit(3);
	}
}
