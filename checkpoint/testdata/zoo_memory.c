#include "zoo.h"
#include <sys/prctl.h>

/* Mappings of every kind, with what is in them and what /proc says of them. */

#define PAGE 4096
#define MIB (1 << 20)

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

enum {
	PLAIN, HIDDEN, READONLY, GROWS, LOCKED, SEQUENTIAL, RANDOM, DONTFORK, DONTDUMP, WIPEONFORK, NOHUGE, HUGE,
	NORESERVE, DEVZERO, FILE_PRIVATE, FILE_OFFSET, FILE_SHARED, FILE_READ, SHARED, EMPTY, ZEROES, CODE, AREAS
};

static struct {
	const char *name;
	size_t len;
	int flags;      /* of mmap, beside those all have */
	int advice;     /* of madvise, or 0 */
	size_t filled;  /* bytes with content from the start */
	int prot;       /* in the end */
	const char *vmflag; /* must be there */
	uint8_t *at;
} m[AREAS] = {
	[PLAIN] = { "plain", MIB, 0, 0, MIB, PROT_READ | PROT_WRITE },
	[HIDDEN] = { "PROT_NONE", 16 * PAGE, 0, 0, 16 * PAGE, PROT_NONE },
	[READONLY] = { "read-only", 16 * PAGE, 0, 0, 16 * PAGE, PROT_READ },
	[GROWS] = { "MAP_GROWSDOWN", 4 * PAGE, MAP_GROWSDOWN, 0, 4 * PAGE, PROT_READ | PROT_WRITE, " gd" },
	[LOCKED] = { "locked", 16 * PAGE, MAP_LOCKED, 0, 4 * PAGE, PROT_READ | PROT_WRITE, " lo" },
	[SEQUENTIAL] = { "MADV_SEQUENTIAL", 4 * PAGE, 0, MADV_SEQUENTIAL, PAGE, PROT_READ | PROT_WRITE, " sr" },
	[RANDOM] = { "MADV_RANDOM", 4 * PAGE, 0, MADV_RANDOM, PAGE, PROT_READ | PROT_WRITE, " rr" },
	[DONTFORK] = { "MADV_DONTFORK", 4 * PAGE, 0, MADV_DONTFORK, PAGE, PROT_READ | PROT_WRITE, " dc" },
	[DONTDUMP] = { "MADV_DONTDUMP", 4 * PAGE, 0, MADV_DONTDUMP, PAGE, PROT_READ | PROT_WRITE, " dd" },
	[WIPEONFORK] = { "MADV_WIPEONFORK", 4 * PAGE, 0, MADV_WIPEONFORK, PAGE, PROT_READ | PROT_WRITE, " wf" },
	[NOHUGE] = { "MADV_NOHUGEPAGE", 4 * MIB, 0, MADV_NOHUGEPAGE, 3 * PAGE, PROT_READ | PROT_WRITE, " nh" },
	[HUGE] = { "MADV_HUGEPAGE", 6 * MIB, 0, MADV_HUGEPAGE, 6 * MIB - PAGE, PROT_READ | PROT_WRITE, " hg" },
	[NORESERVE] = { "MAP_NORESERVE", 4 * PAGE, MAP_NORESERVE, 0, PAGE, PROT_READ | PROT_WRITE },
	[DEVZERO] = { "/dev/zero", 8 * PAGE, 0, 0, 2 * PAGE, PROT_READ | PROT_WRITE },
	[FILE_PRIVATE] = { "private file", 8 * PAGE, 0, 0, 0, PROT_READ | PROT_WRITE },
	[FILE_OFFSET] = { "private file, offset", 2 * PAGE, 0, 0, 0, PROT_READ },
	[FILE_SHARED] = { "shared file", 8 * PAGE, 0, 0, 0, PROT_READ | PROT_WRITE, " sh" },
	[FILE_READ] = { "shared file, read only", 8 * PAGE, 0, 0, 0, PROT_READ },
	[SHARED] = { "shared", MIB, MAP_SHARED | MAP_ANONYMOUS, 0, 0, PROT_READ | PROT_WRITE, " sh" },
	[EMPTY] = { "untouched", 64 * MIB, MAP_NORESERVE, 0, 0, PROT_READ | PROT_WRITE },
	[ZEROES] = { "zeroes", MIB, 0, 0, 0, PROT_READ | PROT_WRITE },
	[CODE] = { "code", PAGE, 0, 0, 0, PROT_READ | PROT_EXEC },
};

static int data_fd;
static uint8_t *heap, *brk_was;
static char maps[1 << 16], vmflags[1 << 16];
static uint8_t version = 1;

/* The first page says how often it was written, the others are filled. */
static int make_file(const char *path)
{
	static uint8_t page[PAGE];
	int fd = must(open(path, O_RDWR | O_CREAT | O_TRUNC, 0640), path);

	for (int i = 0; i < 8; i++) {
		fill(page, PAGE, 100 + i);
		must(pwrite(fd, page, PAGE, i * PAGE), path);
	}
	return fd;
}

static void map_file(int i, int shared, int prot, int fd, off_t off)
{
	m[i].at = mmap(NULL, m[i].len, prot, shared ? MAP_SHARED : MAP_PRIVATE, fd, off);
	must(m[i].at == MAP_FAILED ? -1 : 0, m[i].name);
}

/* A stretch of equal mappings, as neighbours that had become equal may be one
 * after a restore. */
struct stretch {
	unsigned long start, end, offset;
	char text[400];
};

static char *add(char *to, struct stretch *last, const struct stretch *s)
{
	if (last->end == s->start && !strcmp(last->text, s->text) &&
	    (!last->offset || last->offset + (s->start - last->start) == s->offset)) {
		last->end = s->end;
		return to;
	}
	if (last->end)
		to += sprintf(to, "%lx-%lx %lx %s\n", last->start, last->end, last->offset, last->text);
	*last = *s;
	return to;
}

/* Lines of /proc/self/maps with addresses, rights, and names and offsets of what has
 * them on disk; of smaps the flags, but for those that tell how a mapping came
 * about (accounted) and what was written to (soft dirty). */
static void read_maps(char *to, char *flags)
{
	char *line, *save, *s = slurp("/proc/self/maps");
	struct stretch one = { 0 }, last = { 0 }, end = { 0 };
	unsigned long start, stop;
	char prot[8], name[256];

	for (line = strtok_r(s, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		name[0] = 0;
		if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %255s", &one.start, &one.end, prot, &one.offset, name) < 4)
			continue;
		if (name[0] != '/' || strstr(line, "deleted") || !strcmp(name, "/dev/zero"))
			name[0] = one.offset = 0;
		snprintf(one.text, sizeof one.text, "%s %s", prot, name);
		to = add(to, &last, &one);
	}
	add(to, &last, &end);
	s = slurp("/proc/self/smaps");
	memset(&last, 0, sizeof last);
	for (line = strtok_r(s, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		if (sscanf(line, "%lx-%lx ", &start, &stop) == 2)
			one.start = start, one.end = stop;
		if (strncmp(line, "VmFlags:", 8))
			continue;
		one.offset = one.text[0] = 0;
		for (char *f = strtok(line + 8, " "); f; f = strtok(NULL, " "))
			if (strcmp(f, "ac") && strcmp(f, "sd"))
				sprintf(one.text + strlen(one.text), " %s", f);
		flags = add(flags, &last, &one);
	}
	add(flags, &last, &end);
}

static void setup(void)
{
	for (int i = 0; i < AREAS; i++) {
		if (i >= FILE_PRIVATE && i <= FILE_READ)
			continue;
		int flags = m[i].flags & MAP_SHARED ? m[i].flags : m[i].flags | MAP_PRIVATE | MAP_ANONYMOUS;
		if (i == DEVZERO) {
			int fd = must(open("/dev/zero", O_RDWR), "/dev/zero");
			map_file(i, 0, PROT_READ | PROT_WRITE, fd, 0);
			close(fd);
		} else {
			/* Away from others, so that none merge and the stack-like one has room. */
			uint8_t *room = mmap(NULL, m[i].len + 2 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
			must(room == MAP_FAILED ? -1 : 0, m[i].name);
			munmap(room, m[i].len + 2 * MIB);
			m[i].at = mmap(room + MIB, m[i].len, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
			must(m[i].at == MAP_FAILED ? -1 : 0, m[i].name);
			mmap(room, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
		}
		if (m[i].advice)
			must(madvise(m[i].at, m[i].len, m[i].advice), m[i].name);
		fill(m[i].at, m[i].filled, i);
	}
	m[GROWS].at -= 2 * PAGE; /* makes it grow */
	m[GROWS].filled += 2 * PAGE;
	fill(m[GROWS].at, m[GROWS].filled, GROWS);

	data_fd = make_file("mapped");
	map_file(FILE_PRIVATE, 0, PROT_READ | PROT_WRITE, data_fd, 0);
	fill(m[FILE_PRIVATE].at + PAGE, PAGE, FILE_PRIVATE); /* a copy of its own */
	map_file(FILE_OFFSET, 0, PROT_READ, data_fd, 5 * PAGE);
	map_file(FILE_SHARED, 1, PROT_READ | PROT_WRITE, data_fd, 0);
	int fd = must(open("mapped", O_RDONLY), "mapped");
	map_file(FILE_READ, 1, PROT_READ, fd, 0);
	close(fd);

	fill(m[SHARED].at, PAGE, SHARED);
	fill(m[SHARED].at + 100 * PAGE, 3 * PAGE, SHARED + 1);
	fill(m[SHARED].at + 255 * PAGE, PAGE, SHARED + 2);
	for (int i = 0; i < MIB; i += PAGE)
		want(((volatile uint8_t *)m[ZEROES].at)[i] == 0, "zeroes");
	memcpy(m[CODE].at, "\xb8\x2a\x00\x00\x00\xc3", 6); /* mov $42, %eax; ret */

	heap = sbrk(0);
	must(brk(heap + 40 * PAGE), "brk");
	fill(heap, 40 * PAGE, 55);
	for (int i = 0; i < AREAS; i++)
		if (m[i].prot != (PROT_READ | PROT_WRITE))
			must(mprotect(m[i].at, m[i].len, m[i].prot), m[i].name);
	brk_was = sbrk(0);
	read_maps(maps, vmflags);
	for (int i = 0; i < AREAS; i++) {
		char start[32], *line;
		snprintf(start, sizeof start, "\n%lx-", (long)m[i].at);
		if (m[i].vmflag && (!(line = strstr(vmflags, start)) || !memmem(line + 1, strchr(line + 1, '\n') - line, m[i].vmflag, 3)))
			must(-1, m[i].name);
	}
}

static int zero(const uint8_t *p, size_t len)
{
	while (len--)
		if (*p++)
			return 0;
	return 1;
}

/* Names the first line that differs. */
static void compare(const char *what, const char *was, const char *is)
{
	while (*was && *is) {
		int n = strcspn(was, "\n"), k = strcspn(is, "\n");
		if (n != k || memcmp(was, is, n)) {
			fail("%s: was %.*s, is %.*s", what, n, was, k, is);
			return;
		}
		was += n + !!was[n], is += k + !!is[k];
	}
	want(!*was && !*is, "%s: more or fewer lines: %.60s%.60s", what, was, is);
}

static void check(void)
{
	static char maps_is[sizeof maps], vmflags_is[sizeof vmflags];
	static unsigned char resident[64 * MIB / PAGE];
	int touched = 0;

	read_maps(maps_is, vmflags_is);
	compare("maps", maps, maps_is);
	compare("VmFlags", vmflags, vmflags_is);
	mprotect(m[HIDDEN].at, m[HIDDEN].len, PROT_READ);
	for (int i = 0; i < AREAS; i++)
		if (m[i].filled) {
			want(intact(m[i].at, m[i].filled, i), "content of %s", m[i].name);
			size_t rest = i == GROWS ? 0 : m[i].len - m[i].filled;
			want(zero(m[i].at + m[i].filled, rest), "rest of %s", m[i].name);
		}
	mprotect(m[HIDDEN].at, m[HIDDEN].len, PROT_NONE);

	/* What is written to the file shows where no copy was made, and only there. */
	memset(m[FILE_SHARED].at, ++version, PAGE);
	want(m[FILE_PRIVATE].at[0] == version, "private mapping of a file lost its file");
	want(m[FILE_READ].at[PAGE - 1] == version, "shared mapping of a file lost its file");
	uint8_t byte = 0;
	want(pread(data_fd, &byte, 1, 7) == 1 && byte == version, "file does not show what was written by a mapping");
	want(intact(m[FILE_PRIVATE].at + PAGE, PAGE, FILE_PRIVATE), "copied page of a file");
	want(intact(m[FILE_SHARED].at + PAGE, PAGE, 101), "page of a file under a copied one");
	want(intact(m[FILE_OFFSET].at, PAGE, 105) && intact(m[FILE_OFFSET].at + PAGE, PAGE, 106), "file from an offset");

	want(intact(m[SHARED].at, PAGE, SHARED), "shared memory");
	want(zero(m[SHARED].at + PAGE, 99 * PAGE), "hole of shared memory");
	want(intact(m[SHARED].at + 100 * PAGE, 3 * PAGE, SHARED + 1), "shared memory behind a hole");
	want(zero(m[SHARED].at + 103 * PAGE, 152 * PAGE), "second hole of shared memory");
	want(intact(m[SHARED].at + 255 * PAGE, PAGE, SHARED + 2), "end of shared memory");
	want(zero(m[ZEROES].at, MIB), "zeroes");
	mincore(m[EMPTY].at, m[EMPTY].len, resident);
	for (size_t i = 0; i < sizeof resident; i++)
		touched += resident[i] & 1;
	want(!touched, "%d pages of untouched memory", touched);
	want(((int (*)(void))m[CODE].at)() == 42, "code");
	want(intact(heap, 40 * PAGE, 55), "heap");
	want(sbrk(0) == brk_was, "end of heap");
	brk(brk_was + PAGE);
	want(sbrk(0) == brk_was + PAGE && brk(brk_was) == 0, "heap does not grow");
}

const struct part memory = { "memory", setup, check };
