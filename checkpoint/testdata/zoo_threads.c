#include "zoo.h"
#include <linux/futex.h>
#include <sys/resource.h>
#include <sys/rseq.h>

/* What belongs to a thread: registers of every kind, thread-local storage, mask,
 * alternate stack, name, niceness, robust list, restartable sequences, its own
 * pending signals. */

pid_t holder_tid, suspend_tid;
pthread_t holder, suspender;

static uint32_t round_wanted, round_held, round_suspended; /* checks asked for, done */
static const char *volatile complaint[2];
static __thread uint64_t local = 0x1122334455667788u;
static __thread char local_zero[300];
static char altstacks[3][1 << 15];
static const char *const names[3] = { "zoo main", "zoo holder", "(zoo) suspend)" };
static volatile int handled;

struct own {
	void *robust;
	size_t robust_len;
};
static __thread struct own own;

static void claim(int i)
{
	stack_t ss = { .ss_sp = altstacks[i], .ss_size = sizeof altstacks[i] };

	local += i;
	memset(local_zero, i, sizeof local_zero);
	must(sigaltstack(&ss, NULL), "sigaltstack");
	must(-pthread_setname_np(pthread_self(), names[i]), "name");
	must(setpriority(PRIO_PROCESS, 0, 3 * i), "nice");
	must(syscall(SYS_get_robust_list, 0, &own.robust, &own.robust_len), "robust list");
}

static const char *changed(unsigned char i)
{
	stack_t ss;
	void *robust;
	size_t len;
	char name[16];

	if (local != 0x1122334455667788u + i || local_zero[0] != i || local_zero[299] != i)
		return "thread-local variable";
	if (sigaltstack(NULL, &ss) || ss.ss_sp != altstacks[i] || ss.ss_size != sizeof altstacks[i] || ss.ss_flags)
		return "alternate stack";
	if (pthread_getname_np(pthread_self(), name, sizeof name) || strcmp(name, names[i]))
		return "thread name";
	if (getpriority(PRIO_PROCESS, 0) != 3 * i)
		return "niceness";
	if (syscall(SYS_get_robust_list, 0, &robust, &len) || robust != own.robust || len != own.robust_len)
		return "robust list";
	/* Registering the same area once more says that it is. */
	if (!syscall(SYS_rseq, (char *)__builtin_thread_pointer() + __rseq_offset, 32, 0, RSEQ_SIG) || errno != EBUSY)
		return "rseq registration";
	return NULL;
}

struct regs {
	uint8_t ymm[16][32];
	uint64_t gpr[8]; /* rbx rbp r12 r13 r14 r15 r8 r9 */
	uint32_t mxcsr;
	uint16_t cw, pad;
	long double st[4];
	uint64_t flags;
};
static struct regs before, after;

#define LOAD(n) "vmovdqu " #n "*32(%%rdi), %%ymm" #n "\n\t"
#define SAVE(n) "vmovdqu %%ymm" #n ", " #n "*32(%%rsi)\n\t"
#define ALL(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

struct { struct regs *from, *to; uint32_t *word; long value; } hold_this;

/* Waits on a futex with all registers live across the system call. */
__attribute__((target("avx"), noinline))
static void hold(uint32_t *word, uint32_t value)
{
	static const uint32_t plain = 0x1f80;

	hold_this.from = &before, hold_this.to = &after, hold_this.word = word, hold_this.value = value;
	__asm__ volatile(
		"sub $128, %%rsp\n\tpush %%rbp\n\tpush %%rbx\n\tpushfq\n\t" /* below the red zone */
		"lea hold_this(%%rip), %%rax\n\tmov 0(%%rax), %%rdi\n\t" ALL(LOAD)
		"ldmxcsr 576(%%rdi)\n\tfninit\n\tfldcw 580(%%rdi)\n\t"
		"fldt 592(%%rdi)\n\tfldt 608(%%rdi)\n\tfldt 624(%%rdi)\n\tfldt 640(%%rdi)\n\t"
		"mov 512(%%rdi), %%rbx\n\tmov 520(%%rdi), %%rbp\n\tmov 528(%%rdi), %%r12\n\t"
		"mov 536(%%rdi), %%r13\n\tmov 544(%%rdi), %%r14\n\tmov 552(%%rdi), %%r15\n\t"
		"mov 560(%%rdi), %%r8\n\tmov 568(%%rdi), %%r9\n\t"
		"mov 24(%%rax), %%rdx\n\tmov 16(%%rax), %%rdi\n\txor %%esi, %%esi\n\txor %%r10d, %%r10d\n\t"
		"std\n\tmov $202, %%eax\n\tsyscall\n\t" /* futex(word, FUTEX_WAIT, value, NULL) */
		"pushfq\n\tcld\n\tlea hold_this(%%rip), %%rax\n\tmov 8(%%rax), %%rsi\n\t" ALL(SAVE)
		"popq 656(%%rsi)\n\tstmxcsr 576(%%rsi)\n\tfnstcw 580(%%rsi)\n\t"
		"fstpt 640(%%rsi)\n\tfstpt 624(%%rsi)\n\tfstpt 608(%%rsi)\n\tfstpt 592(%%rsi)\n\t"
		"mov %%rbx, 512(%%rsi)\n\tmov %%rbp, 520(%%rsi)\n\tmov %%r12, 528(%%rsi)\n\t"
		"mov %%r13, 536(%%rsi)\n\tmov %%r14, 544(%%rsi)\n\tmov %%r15, 552(%%rsi)\n\t"
		"mov %%r8, 560(%%rsi)\n\tmov %%r9, 568(%%rsi)\n\t"
		"fninit\n\tvzeroupper\n\tpopfq\n\tpop %%rbx\n\tpop %%rbp\n\tadd $128, %%rsp"
		: : : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
		  "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
		  "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	__asm__ volatile("ldmxcsr %0" : : "m"(plain));
}

static const char *registers(void)
{
	const uint64_t direction = 1 << 10;

	if (memcmp(before.ymm, after.ymm, sizeof before.ymm))
		return "vector registers";
	if (memcmp(before.gpr, after.gpr, sizeof before.gpr))
		return "general registers";
	if ((before.mxcsr & ~0x3f) != (after.mxcsr & ~0x3f))
		return "MXCSR";
	if (before.cw != after.cw)
		return "x87 control word";
	for (int i = 0; i < 4; i++)
		if (before.st[i] != after.st[i])
			return "x87 stack";
	if (!(after.flags & direction))
		return "flags";
	return NULL;
}

static void answer(int i, uint32_t *done, const char *what)
{
	complaint[i] = what;
	__atomic_store_n(done, __atomic_load_n(&round_wanted, __ATOMIC_SEQ_CST), __ATOMIC_SEQ_CST);
	syscall(SYS_futex, done, FUTEX_WAKE, 1, NULL, NULL, 0);
}

/* Two signals of one number, which only this thread can take. */
static void queue_own(void)
{
	pthread_sigqueue(pthread_self(), SIG(2), (union sigval){ .sival_ptr = (void *)0x2000000021 });
	pthread_sigqueue(pthread_self(), SIG(2), (union sigval){ .sival_ptr = (void *)0x2000000022 });
}

static const char *own_queue(void)
{
	struct timespec none = { 0, 0 };
	siginfo_t info;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIG(2));
	for (uintptr_t i = 1; i <= 2; i++)
		if (sigtimedwait(&set, &info, &none) != SIG(2) || info.si_code != SI_QUEUE || info.si_pid != getpid() ||
		    info.si_value.sival_ptr != (void *)(0x2000000020 + i))
			return "pending signals";
	if (sigtimedwait(&set, &info, &none) >= 0)
		return "surplus of pending signals";
	queue_own();
	return NULL;
}

static void *hold_registers(void *arg)
{
	fill(&before.ymm, sizeof before.ymm, 7);
	fill(&before.gpr, sizeof before.gpr, 8);
	before.mxcsr = 0x1f80 | 3 << 13 | 1 << 15; /* towards zero, flush to zero */
	before.cw = 0x077f;                        /* round down, 64 bits */
	for (int i = 0; i < 4; i++)
		before.st[i] = 3.25L * i + 1e-4930L;
	claim(1);
	holder_tid = gettid();
	queue_own();
	answer(0, &round_held, NULL);
	for (uint32_t round = round_wanted;; round = round_wanted) {
		const char *what = NULL;
		while (__atomic_load_n(&round_wanted, __ATOMIC_SEQ_CST) == round) {
			hold(&round_wanted, round);
			what = what ? what : registers();
		}
		what = what ? what : own_queue();
		answer(0, &round_held, what ? what : changed(1));
	}
	return arg;
}

static void on_wake(int sig, siginfo_t *info, void *context)
{
	char here;

	(void)context;
	handled = sig == SIG(6) && info->si_value.sival_int == (int)round_wanted;
	if (&here < altstacks[2] || &here >= altstacks[2] + sizeof altstacks[2])
		handled = -1;
}

/* Waits in sigsuspend with a mask that lets one signal in. */
static void *suspend(void *arg)
{
	struct sigaction sa = { .sa_sigaction = on_wake, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	sigset_t mask, mine, left;

	claim(2);
	suspend_tid = gettid();
	sigaction(SIG(6), &sa, NULL);
	pthread_sigmask(SIG_SETMASK, NULL, &mine);
	sigaddset(&mine, SIGHUP);
	pthread_sigmask(SIG_SETMASK, &mine, NULL);
	mask = mine;
	sigdelset(&mask, SIG(6));
	answer(1, &round_suspended, NULL);
	for (;;) {
		handled = 0;
		while (!handled)
			sigsuspend(&mask);
		pthread_sigmask(SIG_SETMASK, NULL, &left);
		const char *what = changed(2);
		if (handled < 0)
			what = "stack of a handler";
		if (memcmp(&mine, &left, 8))
			what = "mask after sigsuspend";
		answer(1, &round_suspended, what);
	}
	return arg;
}

static void await(uint32_t *done, const char *who)
{
	struct timespec second = { 1, 0 };
	uint32_t v;

	for (int i = 0; (v = __atomic_load_n(done, __ATOMIC_SEQ_CST)) != round_wanted; i++) {
		if (i == 15) {
			fail("%s does not answer", who);
			return;
		}
		syscall(SYS_futex, done, FUTEX_WAIT, v, &second, NULL, 0);
	}
}

void start_threads(void)
{
	claim(0);
	round_wanted = 1000;
	must(-pthread_create(&holder, NULL, hold_registers, NULL), "thread");
	await(&round_held, "holder");
	must(-pthread_create(&suspender, NULL, suspend, NULL), "thread");
	await(&round_suspended, "suspended");
	if (!holder_tid || !suspend_tid)
		exit(1);
}

void check_threads(void)
{
	const char *what;

	__atomic_add_fetch(&round_wanted, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &round_wanted, FUTEX_WAKE, 1, NULL, NULL, 0);
	pthread_sigqueue(suspender, SIG(6), (union sigval){ .sival_int = round_wanted });
	await(&round_held, "holder");
	await(&round_suspended, "suspended");
	want(!complaint[0], "holder's %s", complaint[0]);
	want(!complaint[1], "suspended thread's %s", complaint[1]);
	what = changed(0);
	want(!what, "main thread's %s", what);
}
