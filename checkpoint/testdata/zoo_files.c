#include "zoo.h"
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

/* Files, pipes and devices; the working directory. */

#define HIGH 900

static int at37, dup37, append, both, dir, null, zero, urandom, high, cloexec, place, nonblock;
static int owned, signaled, second, in, out, fifo, empty_in, empty_out;
static uint8_t piped[10000];
static char listing[16384];

static int opened(const char *path, int flags) { return must(open(path, flags, 0644), path); }

static void write_all(int fd, const void *p, size_t n) { must(write(fd, p, n) == (ssize_t)n ? 0 : -1, "write"); }

/* Every descriptor with what it leads to and its flags and position. Those of the
 * log and of anonymous files change; waiters look after the latter. */
static void list(char *to)
{
	for (int fd = 0; fd < 1024; fd++) {
		char path[64], link[256];
		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		ssize_t n = readlink(path, link, sizeof link - 1);
		if (n < 0)
			continue;
		link[n] = 0;
		if (!strncmp(link, "pipe:", 5))
			link[5] = 0; /* gets another number */
		snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
		char *pos = slurp(path), *flags = strstr(pos, "flags:");
		pos = strstr(pos, "pos:");
		char *both_bits = strstr(flags, "03");
		if (fd == dir && both_bits)
			both_bits[1] = '1'; /* CRIU opens a directory without O_DIRECTORY */
		to += sprintf(to, "%d %s %s %.*s\n", fd, link, fd < 3 ? "" : strtok(pos, "\n"), (int)strcspn(flags, "\n"), flags);
	}
}

static void setup(void)
{
	int p[2];
	struct f_owner_ex thread = { F_OWNER_TID, getpid() }, group = { F_OWNER_PGRP, getpgrp() };
	char c;

	fill(piped, sizeof piped, 77);
	mkdir("sub", 0751);
	int fd = opened("data", O_RDWR | O_CREAT | O_TRUNC);
	for (int i = 0; i < 100; i++) {
		c = i;
		write_all(fd, &c, 1);
	}
	close(fd);
	at37 = opened("data", O_RDONLY);
	must(lseek(at37, 37, SEEK_SET), "seek");
	dup37 = must(dup(at37), "dup");
	append = opened("append", O_WRONLY | O_APPEND | O_CREAT | O_TRUNC);
	write_all(append, "0123456789", 10);
	both = opened("both", O_RDWR | O_CREAT | O_TRUNC);
	write_all(both, piped, 5000);
	must(lseek(both, 1234, SEEK_SET), "seek");
	dir = opened(".", O_RDONLY | O_DIRECTORY);
	null = opened("/dev/null", O_RDWR);
	zero = opened("/dev/zero", O_RDONLY);
	urandom = opened("/dev/urandom", O_RDONLY);
	high = must(dup2(opened("data", O_RDONLY), HIGH), "dup2");
	cloexec = opened("data", O_RDONLY | O_CLOEXEC);
	place = opened("data", O_PATH);
	nonblock = opened("data", O_RDONLY | O_NONBLOCK | O_NOATIME);
	owned = opened("data", O_RDONLY);
	must(fcntl(owned, F_SETOWN_EX, &thread), "F_SETOWN_EX");
	must(fcntl(owned, F_SETSIG, SIG(11)), "F_SETSIG");
	signaled = opened("data", O_RDONLY);
	must(fcntl(signaled, F_SETSIG, SIG(12)), "F_SETSIG");

	struct flock write = { .l_type = F_WRLCK, .l_start = 10, .l_len = 20 }, read = { .l_type = F_RDLCK, .l_start = 50 };
	/* For looking: to close one more would drop the locks. */
	second = opened("both", O_RDWR);
	must(fcntl(both, F_SETLK, &write), "lock");
	must(fcntl(both, F_OFD_SETLK, &read), "lock");
	must(flock(at37, LOCK_SH | LOCK_NB), "lock");
	must(flock(append, LOCK_EX), "lock");

	must(pipe(p), "pipe");
	in = p[0], out = p[1];
	must(fcntl(out, F_SETPIPE_SZ, 1 << 18), "F_SETPIPE_SZ");
	write_all(out, piped, sizeof piped);
	must(pipe2(p, O_NONBLOCK | O_CLOEXEC), "pipe");
	empty_in = p[0], empty_out = p[1];
	must(fcntl(empty_in, F_SETOWN_EX, &group), "F_SETOWN_EX");
	unlink("fifo");
	must(mkfifo("fifo", 0600), "fifo");
	fifo = opened("fifo", O_RDWR);
	write_all(fifo, piped, 3000);
	must(chdir("sub"), "sub");
	list(listing);
}

static void check_pipe(const char *name, int from, int to, int want_bytes, int want_size)
{
	static uint8_t got[sizeof piped];
	int n = -1;

	ioctl(from, FIONREAD, &n);
	want(n == want_bytes, "%s has %d bytes", name, n);
	want(fcntl(from, F_GETPIPE_SZ) == want_size, "%s takes %d bytes", name, fcntl(from, F_GETPIPE_SZ));
	if (n <= 0)
		return;
	want(read(from, got, sizeof got) == want_bytes && !memcmp(got, piped, want_bytes), "content of %s", name);
	write_all(to, piped, want_bytes);
}

/* Another description of a file meets the locks. */
static void check_locks(void)
{
	struct flock l = { .l_type = F_WRLCK }, rest = { .l_type = F_WRLCK, .l_start = 30 };
	int fd;

	want(!fcntl(second, F_OFD_GETLK, &l) && l.l_type == F_WRLCK && l.l_start == 10 && l.l_len == 20 && l.l_pid == getpid(),
		"lock is %d of %ld at %ld", l.l_type, (long)l.l_len, (long)l.l_start);
	want(!fcntl(second, F_OFD_GETLK, &rest) && rest.l_type == F_RDLCK && rest.l_start == 50 && !rest.l_len && rest.l_pid == -1,
		"open file's lock is %d of %ld at %ld", rest.l_type, (long)rest.l_len, (long)rest.l_start);
	fd = open("../data", O_RDONLY);
	want(flock(fd, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK && !flock(fd, LOCK_SH | LOCK_NB), "shared flock");
	fd = open("../append", O_RDONLY);
	want(flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK, "exclusive flock");
}

static void check(void)
{
	static char is[sizeof listing];
	static uint8_t buf[5000];
	struct f_owner_ex o = { -1, -1 };
	char cwd[256], c = 0;
	struct stat a, b;

	list(is);
	for (char *was = listing, *now = is; *was || *now;) {
		int n = strcspn(was, "\n"), k = strcspn(now, "\n");
		if (n != k || memcmp(was, now, n)) {
			fail("descriptor was %.*s, is %.*s", n, was, k, now);
			break;
		}
		was += n + 1, now += k + 1;
	}
	want(read(dup37, &c, 1) == 1 && c == 37 && lseek(at37, 0, SEEK_CUR) == 38, "shared position");
	lseek(at37, 37, SEEK_SET);
	want(lseek(append, 0, SEEK_SET) == 0 && write(append, "x", 1) == 1 && lseek(append, 0, SEEK_CUR) == 11, "O_APPEND");
	must(ftruncate(append, 10), "truncate");
	lseek(append, 10, SEEK_SET);
	want(read(both, buf, 10) == 10 && !memcmp(buf, piped + 1234, 10) && pwrite(both, buf, 10, 1234) == 10, "read and write");
	lseek(both, 1234, SEEK_SET);
	want(write(null, buf, 10) == 10 && read(null, buf, 10) == 0, "/dev/null");
	want(read(zero, buf, 1) == 1 && !buf[0], "/dev/zero");
	want(read(urandom, buf, 16) == 16, "/dev/urandom");
	want(fcntl(HIGH, F_GETFD) == 0 && fcntl(cloexec, F_GETFD) == FD_CLOEXEC, "close-on-exec");
	want(read(place, &c, 1) < 0 && errno == EBADF, "O_PATH");
	want(openat(dir, "data", O_RDONLY | O_NONBLOCK) >= 0, "directory");
	check_locks();
	for (int fd = 3; fd < 1024; fd++) { /* what that opened */
		char path[64];
		snprintf(path, sizeof path, "\n%d ", fd);
		if (!strstr(listing, path))
			close(fd);
	}
	want(!fcntl(owned, F_GETOWN_EX, &o) && o.type == F_OWNER_TID && o.pid == getpid(), "owner %d %d", o.type, o.pid);
	want(fcntl(owned, F_GETSIG) == SIG(11), "signal of an owned file is %d", fcntl(owned, F_GETSIG));
	want(fcntl(signaled, F_GETSIG) == SIG(12), "signal of a file is %d", fcntl(signaled, F_GETSIG));
	want(!fcntl(empty_in, F_GETOWN_EX, &o) && o.type == F_OWNER_PGRP && o.pid == getpgrp(), "owner %d %d", o.type, o.pid);
	check_pipe("pipe", in, out, sizeof piped, 1 << 18);
	check_pipe("fifo", fifo, fifo, 3000, 1 << 16);
	check_pipe("empty pipe", empty_in, empty_out, 0, 1 << 16);
	want(read(empty_in, &c, 1) < 0 && errno == EAGAIN, "O_NONBLOCK of a pipe");
	want(getcwd(cwd, sizeof cwd) && !strcmp(strrchr(cwd, '/'), "/sub"), "working directory %s", cwd);
	want(!stat(".", &a) && !stat("../sub", &b) && a.st_ino == b.st_ino, "working directory is another");
}

const struct part files = { "files", setup, check };
