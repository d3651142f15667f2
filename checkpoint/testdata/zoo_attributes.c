#include "zoo.h"
#include <grp.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>

/* Credentials, limits and all the settings of a process that /proc shows. What the
 * CRIU of a guest is known to lose is named on the command line. */

static char was[1 << 15];

static int skipped(const char *key, int n)
{
	static char args[512];
	char *end = args + sizeof args;

	if (!*args)
		memcpy(args, slurp("/proc/self/cmdline"), sizeof args - 2);
	for (char *a = args; a < end && *a; a += strlen(a) + 1)
		if (a[0] == '-' && strlen(a + 1) == (size_t)n && !memcmp(a + 1, key, n))
			return 1;
	return 0;
}

/* Lines of a task's status that do not change by themselves. */
static char *status(char *to, pid_t tid)
{
	static const char *const volatile_keys[] = {
		"Vm", "Rss", "State", "voluntary", "nonvoluntary", "SigQ", "PPid", "TracerPid", "FDSize", "HugetlbPages",
		"Mems_allowed", "Cpus_allowed", "Ngid", "untag",
	};
	char path[64], *line, *save;

	snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
	for (line = strtok_r(slurp(path), "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		int skip = skipped(line, strcspn(line, ":"));
		for (size_t i = 0; i < sizeof volatile_keys / sizeof *volatile_keys; i++)
			skip |= !strncmp(line, volatile_keys[i], strlen(volatile_keys[i]));
		if (!strncmp(line, "ShdPnd:", 7)) /* a timer may just be firing */
			sprintf(line + 7, "\t%016llx", strtoull(line + 7, NULL, 16) & ~(1ull << (SIG(8) - 1)));
		if (!skip)
			to += sprintf(to, "%d %s\n", tid - gettid(), line);
	}
	return to;
}

static char *whole(char *to, const char *name)
{
	char path[64];

	if (skipped(name, strlen(name)))
		return to;
	snprintf(path, sizeof path, "/proc/self/%s", name);
	return to + sprintf(to, "%s %s\n", name, slurp(path));
}

static void list(char *to)
{
	static const char *const names[] = {
		"limits", "oom_score_adj", "cmdline", "environ", "loginuid", "personality", "coredump_filter", "timerslack_ns",
		"comm",
	};
	pid_t tids[3] = { gettid(), holder_tid, suspend_tid };
	char link[256] = "";
	int v = -1;

	for (int i = 0; i < 3; i++) {
		struct sched_param p = { -1 };
		to = status(to, tids[i]);
		sched_getparam(tids[i], &p);
		to += sprintf(to, "scheduler %d %d\n", sched_getscheduler(tids[i]), p.sched_priority);
	}
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		to = whole(to, names[i]);
	must(readlink("/proc/self/exe", link, sizeof link - 1), "exe");
	to += sprintf(to, "exe %s\n", link);
	char *stat = strrchr(slurp("/proc/self/stat"), ')');
	for (int field = 2; stat && *stat; field++) {
		int n = strcspn(stat, " ");
		/* start_code to start_stack; start_data to env_end */
		if ((field >= 26 && field <= 28) || (field >= 45 && field <= 51))
			to += sprintf(to, "stat %d %.*s\n", field, n, stat);
		stat += n + !!stat[n];
	}
	const uint8_t *a = (uint8_t *)slurp("/proc/self/auxv");
	for (int i = 0; i < 16 * 20; i += 8)
		to += sprintf(to, "auxv %d %lx\n", i, *(long *)(a + i));
	to += sprintf(to, "session %d %d\n", getsid(0) == getpid(), getpgrp() == getpid());
	prctl(PR_GET_CHILD_SUBREAPER, &v);
	to += sprintf(to, "subreaper %d\n", v);
	prctl(PR_GET_PDEATHSIG, &v);
	to += sprintf(to, "pdeathsig %d\n", v);
	to += sprintf(to, "dumpable %d securebits %d thp_disabled %d\n",
		prctl(PR_GET_DUMPABLE), prctl(PR_GET_SECUREBITS), prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
	if (!skipped("membarrier", 10))
		to += sprintf(to, "membarrier %ld\n", syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0));
	/* umask is in status, but only reading it proves that it is used */
	mode_t mask = umask(0);
	umask(mask);
	sprintf(to, "umask %o\n", mask);
}

static void set_proc(const char *name, const char *value)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/%s", name);
	int fd = must(open(path, O_WRONLY), path);
	must(write(fd, value, strlen(value)), path);
	close(fd);
}

static void setup(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct caps[2];
	struct sched_param none = { 0 };
	struct rlimit l;
	gid_t groups[] = { 7, 70, 70000, 4000000000u };

	skipped("", 0); /* reads the arguments */
	l = (struct rlimit){ 1000, 1024 };
	must(setrlimit(RLIMIT_NOFILE, &l), "rlimit");
	l = (struct rlimit){ 111 << 20, RLIM_INFINITY };
	must(setrlimit(RLIMIT_MEMLOCK, &l), "rlimit");
	l = (struct rlimit){ 0, 4096 };
	must(setrlimit(RLIMIT_CORE, &l), "rlimit");
	l = (struct rlimit){ 3 << 20, 77 << 20 };
	must(setrlimit(RLIMIT_STACK, &l), "rlimit");
	umask(0137);
	set_proc("oom_score_adj", "321");
	set_proc("coredump_filter", "0x5a");
	must(prctl(PR_SET_TIMERSLACK, 123456), "timer slack");
	must(prctl(PR_SET_CHILD_SUBREAPER, 1), "subreaper");
	must(sched_setscheduler(suspend_tid, SCHED_BATCH, &none), "scheduler");
	must(syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0), "membarrier");
	must(personality(ADDR_NO_RANDOMIZE), "personality");

	must(setgroups(4, groups), "groups");
	must(setresgid(10, 20, 30), "gid");
	setfsgid(40);
	must(setresuid(0, 0, 1000), "uid");
	must(prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS), "securebits");
	must(prctl(PR_CAPBSET_DROP, CAP_MAC_ADMIN), "bounding set");
	must(prctl(PR_CAPBSET_DROP, CAP_SYSLOG), "bounding set");
	/* The main thread alone gives up more. */
	must(syscall(SYS_capget, &header, caps), "capget");
	caps[0].effective &= ~(1u << CAP_SYS_MODULE | 1u << CAP_SYS_TIME);
	caps[0].permitted &= ~(1u << CAP_SYS_MODULE);
	caps[0].inheritable = 1u << CAP_CHOWN | 1u << CAP_KILL;
	caps[1].permitted &= ~(1u << (CAP_WAKE_ALARM - 32));
	caps[1].effective = caps[1].permitted;
	must(syscall(SYS_capset, &header, caps), "capset");
	must(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_KILL, 0, 0), "ambient set");
	must(prctl(PR_SET_PDEATHSIG, SIGURG), "pdeathsig");
	must(prctl(PR_SET_DUMPABLE, 1), "dumpable");
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
}

static void check(void)
{
	static char is[sizeof was];

	list(is);
	if (!*was) { /* everything is in place only at the first check */
		memcpy(was, is, sizeof was);
		return;
	}
	for (char *a = was, *b = is; *a || *b;) {
		int n = strcspn(a, "\n"), k = strcspn(b, "\n");
		if (n != k || memcmp(a, b, n))
			fail("was %.*s, is %.*s", n, a, k, b);
		a += n + !!a[n], b += k + !!b[k];
	}
}

const struct part attributes = { "attributes", setup, check };
