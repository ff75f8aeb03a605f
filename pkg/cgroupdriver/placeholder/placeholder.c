// placeholder waits until nobody holds the other end of its standard input any more, then ends. If it reads a process's
// pid there first, it waits for that process to end instead, and half a minute more. It has no libc, one page of code, and
// reacts to every signal as the kernel does.
#include <poll.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#if defined(__x86_64__)
static inline long sc(long n, long a, long b, long c, long d, long e) {
	long r;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start: xor %ebp,%ebp\n and $-16,%rsp\n call entry\n");
#elif defined(__aarch64__)
static inline long sc(long n, long a, long b, long c, long d, long e) {
	register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
		x3 __asm__("x3") = d, x4 __asm__("x4") = e;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory", "cc");
	return x0;
}
__asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n bl entry\n");
#else
#error "placeholder knows x86_64 and arm64"
#endif

#define EINTR 4 // after SIGCONT
#define GRACE 30 // seconds

__attribute__((noreturn, used)) void entry(void) {
	struct { long s, ns; } grace = { GRACE, 0 };
	struct pollfd watched = { -1, POLLIN, 0 };
	int pid;
	long n;

	sc(SYS_prctl, PR_SET_NAME, (long)"cri-placeholder", 0, 0, 0); // it was executed by a descriptor's number
	while ((n = sc(SYS_read, 0, (long)&pid, sizeof pid, 0, 0)) == -EINTR)
		;
	if (n == sizeof pid) {
		watched.fd = sc(SYS_pidfd_open, pid, 0, 0, 0, 0); // Linux 5.3
		while (watched.fd >= 0 && sc(SYS_ppoll, (long)&watched, 1, 0, 0, 0) == -EINTR)
			;
		while (sc(SYS_ppoll, 0, 0, (long)&grace, 0, 0) == -EINTR) // which updates the time that is left
			;
	}
	for (;;)
		sc(SYS_exit_group, 0, 0, 0, 0, 0);
}
