// What the stub is built on: system calls, and the protocol that it speaks with Go.
//
// Every order is a struct order (16 bytes, file descriptors ride on it as SCM_RIGHTS) followed by len bytes of payload;
// every answer a struct answer, perhaps with one descriptor. The Go side of the same protocol is conn.go, nursery.go and
// identity.go.
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <asm/ioctls.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/keyctl.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <errno.h>

#ifndef CLONE_PIDFD
#define CLONE_PIDFD 0x1000
#endif
#define CLOSE_RANGE_CLOEXEC_FLAG 4
#define MNT_DETACH 2

#if defined(__x86_64__)
static inline long sc(long n, long a, long b, long c, long d, long e, long f) {
	long r;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		: "rcx", "r11", "memory");
	return r;	// -errno on failure
}
__asm__(".globl _start\n_start: xor %ebp,%ebp\n and $-16,%rsp\n call entry\n");
#elif defined(__aarch64__)
static inline long sc(long n, long a, long b, long c, long d, long e, long f) {
	register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
		x3 __asm__("x3") = d, x4 __asm__("x4") = e, x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory", "cc");
	return x0;
}
__asm__(".globl _start\n_start: mov x29, xzr\n mov x30, xzr\n bl entry\n");
#else
#error "the stub knows x86_64 and arm64"
#endif
#define S0(n) sc(n,0,0,0,0,0,0)
#define S1(n,a) sc(n,(long)(a),0,0,0,0,0)
#define S2(n,a,b) sc(n,(long)(a),(long)(b),0,0,0,0)
#define S3(n,a,b,c) sc(n,(long)(a),(long)(b),(long)(c),0,0,0)
#define S4(n,a,b,c,d) sc(n,(long)(a),(long)(b),(long)(c),(long)(d),0,0)
#define S5(n,a,b,c,d,e) sc(n,(long)(a),(long)(b),(long)(c),(long)(d),(long)(e),0)
#define S6(n,a,b,c,d,e,f) sc(n,(long)(a),(long)(b),(long)(c),(long)(d),(long)(e),(long)(f))

enum { OP_UNSHARE = 2, OP_SETNS, OP_FORK, OP_SETID, OP_FSMOUNT, OP_TTY, OP_EXEC, OP_ROOT,
	OP_NEST, OP_SPAWN, OP_JOIN, OP_PREPARE, OP_GO, OP_TAKE, OP_RUN };
enum { F_NNP = 1, F_SECCOMP = 2, F_PERSONALITY = 4, F_MEMPOLICY = 8, F_TOP = 16, F_EARLY = 32 };
enum { STEP_LABEL = 1, STEP_HOSTNAME, STEP_DOMAINNAME, STEP_KEYRING, STEP_PERSONALITY, STEP_MEMPOLICY, STEP_CLOSE,
	STEP_CHDIR, STEP_CWD, STEP_SECCOMP, STEP_BOUNDING, STEP_KEEPCAPS, STEP_GROUPS, STEP_GID, STEP_UID, STEP_CAPSET,
	STEP_AMBIENT, STEP_NNP, STEP_EXECVE, STEP_PAYLOAD, STEP_ROOT, STEP_SCORE, STEP_LIMIT };	// STEP_LIMIT: the first of them

#define SOCK 3
#define MAXFD 32
#define MAXPAYLOAD (16u << 20)
#define NODEWORDS 16

struct order { uint32_t op, len; uint64_t a; };
struct answer { int32_t err, val; };
struct identity {					// head of OP_PREPARE's and OP_EXEC's payload; then, in this order:
	uint32_t flags, uid, gid, ngroups;		//  groups u32[ngroups], padded to 8 bytes
	uint64_t bnd, prm, eff, inh, amb;		//  bpf u64[nbpf]
	uint32_t npaths, nargs, nenv, nbpf;		//  host\0 domain\0 cwd\0 keyring\0 apparmor\0 selinux\0
	uint32_t umask, secflags, personality, mempolicy;	//  paths\0... args\0... env\0...
	uint64_t nodes[NODEWORDS];
};

// The nursery answers OP_SPAWN on the fork's socket: with the pid and a pidfd, or with the error and SPAWN_FAILED.
struct spawn {			// payload of OP_SPAWN; its descriptors are, in this order:
	uint64_t clone, unshare, join;	//  the fork's socket, its stdio, a cgroup2 directory if `cgroup` is set,
	uint32_t cgroup, ntasks, njoins, pad;	//  `tasks` files of v1 hierarchies, namespaces or one pidfd to join
};
#define SPAWN_FAILED -1

// Payload of OP_RUN: head, limits, identity. With RUN_FORK it is a fork of the stub that becomes the program; the stub
// answers with its pid, negative, since the nursery's own answer may still be to come, and a pidfd, or with the error and
// FORK_FAILED. RUN_KEEP: the identity has labels.
#define FORK_FAILED -2
enum { RUN_FORK = 1, RUN_KEEP = 2, RUN_SCORE = 4 };
struct run {
	uint32_t flags, nlimits;
	char score[16];			// for oom_score_adj
	struct { uint64_t resource, soft, hard; } limits[];
};
