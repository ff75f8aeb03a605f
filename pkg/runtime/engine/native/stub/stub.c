// The engine's stub: the first program of a container, and of every exec session.
//
// Go executes it once, as the nursery: OP_NEST leaves it a root without a single file, and OP_SPAWN forks it, straight
// into the new namespaces. A fork obeys small orders read from the socket on fd 3 until OP_EXEC takes on the container's
// identity and replaces it by the container's program. It holds no secret, allocates nothing it doesn't need, and calls
// no library: only raw system calls, on x86_64 and arm64.
#include "stub.h"

static int fds[MAXFD], nfds;
static uint64_t bounding;	// the capabilities that are in the bounding set

// gcc may call these for struct copies even in freestanding code.
void *memset(void *d, int c, size_t n) { for (volatile char *p = d; n--;) *p++ = (char)c; return d; }
void *memcpy(void *d, const void *s, size_t n) {
	const char *q = s;
	for (volatile char *p = d; n--;) *p++ = *q++;
	return d;
}

static long receive(struct order *o) {
	union { struct cmsghdr c; char b[CMSG_SPACE(sizeof(int) * MAXFD)]; } u;
	struct iovec iov = { o, sizeof *o };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &u, .msg_controllen = sizeof u };
	long r;
	do r = S3(SYS_recvmsg, SOCK, &m, MSG_CMSG_CLOEXEC | MSG_WAITALL); while (r == -EINTR);
	nfds = 0;
	if (r > 0 && m.msg_controllen >= sizeof(struct cmsghdr) && u.c.cmsg_type == SCM_RIGHTS) {
		nfds = (u.c.cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (int i = 0; i < nfds; i++) fds[i] = ((int *)CMSG_DATA(&u.c))[i];
	}
	return r;
}

static void answerto(int sock, long err, long val, int fd) {
	struct answer a = { (int32_t)-err, (int32_t)val };
	union { struct cmsghdr c; char b[CMSG_SPACE(sizeof(int))]; } u;
	struct iovec iov = { &a, sizeof a };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1 };
	if (fd >= 0) {
		m.msg_control = &u;
		m.msg_controllen = sizeof u;
		u.c.cmsg_level = SOL_SOCKET;
		u.c.cmsg_type = SCM_RIGHTS;
		u.c.cmsg_len = CMSG_LEN(sizeof(int));
		*(int *)CMSG_DATA(&u.c) = fd;
	}
	S3(SYS_sendmsg, sock, &m, MSG_NOSIGNAL);
}

static void answer(long err, long val, int fd) { answerto(SOCK, err, val, fd); }

static void closefds(void) {
	if (nfds) S3(SYS_close_range, SOCK + 1, ~0U, 0);	// there are no others
	nfds = 0;
}

static void *pages(unsigned long n) {
	long r = S6(SYS_mmap, 0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return r < 0 && r > -4096 ? 0 : (void *)r;
}

static long slen(const char *s) { long n = 0; while (s[n]) n++; return n; }

// word returns the string at *p and moves *p behind its end, or null when it is not ended before end.
static char *word(char **p, const char *end) {
	char *s = *p, *q = s;
	while (q < end && *q) q++;
	if (q >= end) return 0;
	*p = q + 1;
	return s;
}

static void signals(void) {
	struct { void *handler; unsigned long flags; void *restorer; uint64_t mask; } dfl = { 0, 0, 0, 0 };
	uint64_t none = 0;
	for (int i = 1; i <= 64; i++) S4(SYS_rt_sigaction, i, &dfl, 0, 8);
	S4(SYS_rt_sigprocmask, SIG_SETMASK, &none, 0, 8);
}

// readbounding notes what is in the bounding set: at the start, and again in another user namespace, where it is full.
static void readbounding(void) {
	bounding = 0;
	for (int i = 0; i < 64; i++) {
		long has = S2(SYS_prctl, PR_CAPBSET_READ, i);
		if (has < 0) break;	// beyond the kernel's last capability
		bounding |= (uint64_t)has << i;
	}
}

#include "become.h"

// fsmount makes a file system in the stub's own namespaces and answers with the detached mount.
// Payload: type\0 (key\0 value\0)...; an empty value is a flag.
static long fsmount(char *p, const char *end, uint64_t attrs, int *out) {
	char *type = word(&p, end);
	if (!type) return -EINVAL;
	long f = S2(SYS_fsopen, type, FSOPEN_CLOEXEC), r = 0;
	if (f < 0) return f;
	while (r >= 0 && p < end) {
		char *k = word(&p, end), *v = word(&p, end);
		if (!k || !v) r = -EINVAL;
		else if (*v) r = S5(SYS_fsconfig, f, FSCONFIG_SET_STRING, k, v, 0);
		else r = S5(SYS_fsconfig, f, FSCONFIG_SET_FLAG, k, 0, 0);
	}
	if (r >= 0) r = S5(SYS_fsconfig, f, FSCONFIG_CMD_CREATE, 0, 0, 0);
	if (r >= 0) r = S3(SYS_fsmount, f, FSMOUNT_CLOEXEC, attrs);
	if (r >= 0) { *out = (int)r; r = 0; }
	S1(SYS_close, f);
	return r;
}

static long tty(void) {
	long r = S3(SYS_ioctl, fds[0], TIOCSCTTY, 0);
	for (int i = 0; r >= 0 && i < 3; i++) r = S3(SYS_dup3, fds[0], i, 0);
	return r;
}

static long setid(void) {
	long r = S2(SYS_setgroups, 0, 0);
	if (r >= 0) r = S3(SYS_setresgid, 0, 0, 0);
	if (r >= 0) r = S3(SYS_setresuid, 0, 0, 0);
	S2(SYS_prctl, PR_SET_DUMPABLE, 0);	// a change of ids has set it anew
	return r;
}

// nest leaves nothing but an empty file system in this mount namespace, which is one of our own. What is forked here gets
// a copy of that, not of all the host's mounts.
static long nest(void) {
	long r = S5(SYS_mount, 0, "/", 0, MS_REC | MS_PRIVATE, 0);
	if (r >= 0) r = S5(SYS_move_mount, fds[0], "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH);
	if (r >= 0) r = S1(SYS_fchdir, fds[0]);
	if (r >= 0) r = S2(SYS_pivot_root, ".", ".");
	if (r >= 0) r = S2(SYS_umount2, ".", MNT_DETACH);
	return r;
}

// moved makes the stub what its orders rely on again after a change of the user namespace.
static long moved(long r, uint64_t flags) {
	if (r >= 0 && flags & CLONE_NEWUSER) readbounding();
	return r;
}

// enter moves the stub into the v1 cgroups whose `tasks` files are fds[from] to fds[to], and makes further namespaces
// there. *at counts what has succeeded.
static long enter(int from, int to, uint64_t unshare, int *at) {
	long r = 0;
	for (int i = from; r >= 0 && i < to; i++) {
		r = S3(SYS_write, fds[i], "0", 1);	// moves the writer
		if (r >= 0) ++*at;
	}
	if (r >= 0 && unshare) r = S1(SYS_unshare, unshare);
	return r;
}

// settle is the beginning of a fork: its stdio, its cgroups, the namespaces that it joins, those that it makes when it is
// in its cgroup. *at counts what has succeeded.
static long settle(struct spawn *s, int *at) {
	if (!(s->join & CLONE_NEWPID)) S0(SYS_setsid);	// else its fork makes one: to the kernel that is a group of tasks, too
	long r = S3(SYS_dup3, fds[0], SOCK, O_CLOEXEC);
	if (r < 0) S1(SYS_exit_group, 1);	// this end is not to answer
	for (int i = 0; r >= 0 && i < 3; i++) r = S3(SYS_dup3, fds[1 + i], i, 0);
	int first = 4 + (s->cgroup != 0), tasks = first + s->ntasks;
	if (r >= 0) r = enter(first, tasks, 0, at);
	for (int i = tasks; r >= 0 && i < nfds; i++) {
		r = moved(S2(SYS_setns, fds[i], s->join), s->join);
		if (r >= 0) ++*at;
	}
	if (r >= 0 && s->unshare) r = S1(SYS_unshare, s->unshare);
	closefds();
	return r;
}

// take makes a stub that was forked ahead of its container that container's: its stdio, the namespaces that it joins. *at
// counts what has succeeded.
static long take(int *at) {
	long r = nfds < 3 ? -EBADF : 0;
	for (int i = 0; r >= 0 && i < 3; i++) r = S3(SYS_dup3, fds[i], i, 0);
	for (int i = 3; r >= 0 && i < nfds; i++) {
		r = S2(SYS_setns, fds[i], 0);
		if (r >= 0) ++*at;
	}
	return r;
}

// spawn forks the nursery; the fork is a child of Go as well. It returns in both.
static long spawn(struct spawn *s, uint32_t len, int *out) {
	if (len != sizeof *s || s->ntasks > MAXFD || s->njoins > MAXFD ||
		nfds != (int)(4 + (s->cgroup != 0) + s->ntasks + s->njoins)) return -EINVAL;
	uint64_t flags = s->clone | CLONE_PARENT | CLONE_PIDFD;
	if (!s->cgroup) return S5(SYS_clone, flags | SIGCHLD, 0, out, 0, 0);	// where clone3 may be refused
	struct clone_args a = { .flags = flags | CLONE_INTO_CGROUP, .pidfd = (uint64_t)(uintptr_t)out, .cgroup = fds[4] };
	return S2(SYS_clone3, &a, sizeof a);	// with CLONE_PARENT the signal at its end is ours
}

// score writes our oom_score_adj, which forks inherit. fds[0] is a proc mount that the container has no hand in.
static long score(const char *value) {
	if (nfds < 1) return -EBADF;
	long f = S4(SYS_openat, fds[0], "self/oom_score_adj", O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0);
	if (f < 0) return f;
	long r = S3(SYS_write, f, value, slen(value));
	S1(SYS_close, f);
	return r < 0 ? r : 0;
}

// run is all that there is to do between the namespaces and the program, without another word from Go: what Go would wait
// for takes less time than to wake it. What shows the host is closed before the fork, which is born where the container's
// processes may see it. It returns only on failure, or when the fork has been told of: 0.
static long run(char *buf, uint32_t len, int *step) {
	struct run *s = (struct run *)buf;
	*step = STEP_PAYLOAD;
	if (len < sizeof *s || s->nlimits > 64 || len < sizeof *s + s->nlimits * sizeof s->limits[0]) return -EINVAL;
	long r = 0;
	s->score[sizeof s->score - 1] = 0;
	if (s->flags & RUN_SCORE) TRY(STEP_SCORE, score(s->score));
	if (!(s->flags & RUN_KEEP)) closefds();
	if (s->flags & RUN_FORK) {
		int out = -1;
		*step = FORK_FAILED;
		r = S5(SYS_clone, CLONE_PARENT | CLONE_PIDFD | SIGCHLD, 0, &out, 0, 0);
		if (r > 0) answer(0, -r, out);
		if (r != 0) return r < 0 ? r : 0;
		S0(SYS_setsid);
	}
	for (uint32_t i = 0; i < s->nlimits; i++)	// late, since they may hinder us
		TRY(STEP_LIMIT + (int)i, S4(SYS_prlimit64, 0, s->limits[i].resource, &s->limits[i].soft, 0));
	uint32_t head = sizeof *s + s->nlimits * sizeof s->limits[0];
	r = prepare(buf + head, len - head, step);
	return r < 0 ? r : become(step);
}

static int stub(void) {
	struct order o;
	S3(SYS_fcntl, SOCK, F_SETFD, FD_CLOEXEC);
	S3(SYS_close_range, SOCK + 1, ~0U, 0);	// what Go's own parent has left open
	S2(SYS_prctl, PR_SET_DUMPABLE, 0);	// nobody in the container may look into us
	S2(SYS_prctl, PR_SET_NAME, "cri-stub");
	S0(SYS_setsid);				// Go's session must not be the container's
	signals();
	readbounding();
	struct spawn small;
	for (;;) {
		long r = receive(&o), val = 0;
		int out = -1, step = 0;
		if (r != sizeof o || o.len > MAXPAYLOAD) return 1;	// Go went away or gave up
		char *buf = 0;
		if (o.len && !(buf = o.len <= sizeof small ? (char *)&small : pages(o.len))) return 1;
		for (uint32_t n = 0; n < o.len; n += r) {
			do r = S3(SYS_read, SOCK, buf + n, o.len - n); while (r == -EINTR);
			if (r <= 0) return 1;
		}
		r = 0;
		switch (o.op) {
		case OP_UNSHARE: r = moved(S1(SYS_unshare, o.a), o.a); break;
		case OP_SETNS: r = nfds ? moved(S2(SYS_setns, fds[0], o.a), o.a) : -EBADF; break;
		case OP_FORK:		// the child takes over the socket and is a child of Go as well
			r = S5(SYS_clone, CLONE_PARENT | CLONE_PIDFD | SIGCHLD | o.a, 0, &out, 0, 0);
			if (r > 0) { answer(0, r, out); return 0; }
			if (r == 0) { S0(SYS_setsid); continue; }
			out = -1;
			break;
		case OP_SETID: r = setid(); break;
		case OP_FSMOUNT: r = fsmount(buf, buf + o.len, o.a, &out); break;
		case OP_TTY: r = nfds ? tty() : -EBADF; break;
		case OP_ROOT:
			r = nfds ? S1(SYS_fchdir, fds[0]) : -EBADF;
			if (r >= 0) r = S1(SYS_chroot, ".");
			break;
		case OP_NEST: r = nfds ? nest() : -EBADF; break;
		case OP_SPAWN:
			r = spawn(&small, o.len, &out);
			if (r != 0) {
				if (nfds) answerto(fds[0], r < 0 ? r : 0, r < 0 ? SPAWN_FAILED : r, r < 0 ? -1 : out);
				closefds();	// and the pidfd
				continue;
			}
			out = -1;
			r = settle(&small, &step);
			answer(r < 0 ? r : 0, step, -1);
			if (r < 0) return 1;
			continue;
		case OP_TAKE: r = take(&step); val = step; break;
		case OP_JOIN: r = enter(0, nfds, o.a, &step); val = step; break;
		case OP_PREPARE:
			r = prepare(buf, o.len, &step);
			answer(r < 0 ? r : 0, step, -1);
			if (r < 0) return 1;
			continue;
		case OP_EXEC: case OP_GO:	// the one is OP_PREPARE and OP_GO
			r = o.op == OP_EXEC ? prepare(buf, o.len, &step) : 0;
			if (r >= 0) r = become(&step);
			answer(r, step, -1);
			return 127;
		case OP_RUN:
			r = run(buf, o.len, &step);
			if (r < 0) answer(r, step, -1);
			return 127;
		default: r = -ENOSYS;
		}
		answer(r < 0 ? r : 0, val, out);
		if (out >= 0) S1(SYS_close, out);
		closefds();
		if (buf && buf != (char *)&small) S2(SYS_munmap, buf, o.len);
	}
}

__attribute__((used)) static void entry(void) { S1(SYS_exit_group, stub()); __builtin_unreachable(); }
