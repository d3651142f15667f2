#include "zoo.h"
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>

/* Two filters of system calls in the main thread: the older answers uname and
 * sysinfo with EPERM, the newer getrusage and sysinfo with ENOSYS. Of equal answers
 * the newer filter's counts, so that sysinfo shows their order. */

static void install(int nr, int error)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sysinfo, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };

	must(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), "seccomp");
}

static void setup(void)
{
	install(SYS_getitimer + 1000, EPERM); /* harmless */
	install(SYS_uname, EPERM);
	install(SYS_getrusage, ENOSYS);
}

static int answer(int nr)
{
	char room[512];

	return syscall(nr, nr == SYS_getrusage ? (void *)0 : room, room) < 0 ? errno : 0;
}

static void check(void)
{
	want(answer(SYS_uname) == EPERM, "older filter: %d", answer(SYS_uname));
	want(answer(SYS_getrusage) == ENOSYS, "newer filter: %d", answer(SYS_getrusage));
	want(answer(SYS_sysinfo) == ENOSYS, "order of filters: %d", answer(SYS_sysinfo));
}

const struct part filters = { "filters", setup, check };
