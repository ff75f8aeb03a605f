// pause holds a pod's namespaces. As pid 1 of a shared pid namespace it reaps what is orphaned to it.
//
// It has no libc and no writable memory but its stack: one page of code, a few system calls on x86_64 and arm64. It
// ends with 0 on SIGTERM and SIGINT, as Kubernetes' own pause does, and takes no notice of any other signal that can be
// blocked. A blocked signal is queued even for a pid 1 that has no handler, where an unblocked one would be dropped
// (sig_task_ignored in kernel/signal.c); hence rt_sigtimedwait(2) and no handlers.
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#if defined(__x86_64__)
static inline long sc(long n, long a, long b, long c, long d) {
	long r;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start: xor %ebp,%ebp\n and $-16,%rsp\n call entry\n");
#elif defined(__aarch64__)
static inline long sc(long n, long a, long b, long c, long d) {
	register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
		x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory", "cc");
	return x0;
}
__asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n bl entry\n");
#else
#error "pause knows x86_64 and arm64"
#endif

__attribute__((noreturn, used)) void entry(void) {
	// The kernel's signal set is one word of 64 bits; SIGKILL and SIGSTOP in it are ignored.
	const unsigned long all = ~0UL;

	sc(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all, 0, sizeof all);
	sc(SYS_prctl, PR_SET_NAME, (long)"pause", 0, 0); // it was executed by a descriptor's number
	// Not for a container that has the same user in a shared pid namespace: pause has another cgroup than it.
	sc(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0);
	for (;;) {
		// Children that ended before the mask was set have left no signal, so reap first.
		while (sc(SYS_wait4, -1, 0, WNOHANG | __WALL, 0) > 0)
			;
		long sig = sc(SYS_rt_sigtimedwait, (long)&all, 0, 0, sizeof all);
		if (sig == SIGTERM || sig == SIGINT)
			for (;;)
				sc(SYS_exit_group, 0, 0, 0, 0);
	}
}
