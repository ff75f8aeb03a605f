// How a stub takes on a container's identity and becomes its program: in two parts, prepare and become.
// attr writes into one of our own LSM attributes. Only the process that opened the file may write to it
// (Linux 5.13), so Go can't do it; but Go sends a proc mount (fds[0]) that the container has no hand in.
static long attr(const char *path, const char *verb, const char *label) {
	char b[4096 + 8];
	long n = 0;
	for (const char *s = verb; *s;) b[n++] = *s++;
	for (const char *s = label; *s && n < (long)sizeof b; ) b[n++] = *s++;
	if (nfds < 1) return -EBADF;
	long f = S4(SYS_openat, fds[0], path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0);
	if (f < 0) return f;
	long r = S3(SYS_write, f, b, n);
	S1(SYS_close, f);
	return r < 0 ? r : 0;
}

static long labels(const char *apparmor, const char *selinux) {
	long r = 0;
	if (*apparmor) {	// the file has had a directory of its own since Linux 5.8
		r = attr("thread-self/attr/apparmor/exec", "exec ", apparmor);
		if (r == -ENOENT) r = attr("thread-self/attr/exec", "exec ", apparmor);
	}
	if (r >= 0 && *selinux) {
		r = attr("thread-self/attr/exec", "", selinux);
		if (r >= 0) r = attr("thread-self/attr/keycreate", "", selinux);
	}
	return r;
}

// keyring gives the container a session keyring of its own; an exec session finds it by its name, for which the
// owner needs the right to search it (keyctl(2), KEYCTL_SETPERM: possessor all; user view, read, search, link).
static long keyring(const char *name) {
	long r = S2(SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name);
	if (r == -ENOSYS) return 0;
	if (r >= 0) r = S3(SYS_keyctl, KEYCTL_SETPERM, r, 0x3f1b0000);
	return r == -EACCES ? 0 : r;	// joined one that belongs to another user of the same container
}

// indir changes the directory and makes sure that it is below the root: a path through a leaked descriptor
// would show as "(unreachable)".
static long indir(const char *cwd, int *step) {
	char b[4096];
	long r = S1(SYS_chdir, cwd);
	*step = STEP_CHDIR;
	if (r < 0) return r;
	*step = STEP_CWD;
	r = S2(SYS_getcwd, b, sizeof b);
	return r < 0 ? r : b[0] == '/' ? 0 : -ENOENT;
}

#define TRY(n, call) do { *step = n; r = (call); if (r < 0) return r; } while (0)

// What the stub is to become, since prepare.
static struct {
	struct identity *id;
	uint32_t *groups;
	struct sock_fprog prog;
	char **paths, **args, **env, *cwd;
	int loaded;	// the filter is there
} next;

static long load(int *step) {
	long r;
	if (!(next.id->flags & F_SECCOMP) || next.loaded) return 0;
	TRY(STEP_SECCOMP, S3(SYS_seccomp, SECCOMP_SET_MODE_FILTER, next.id->secflags, &next.prog));
	next.loaded = 1;
	return 0;
}

// prepare reads an identity and takes on what of it doesn't hinder the stub; the container's root is there. buf stays.
static long prepare(char *buf, uint32_t len, int *step) {
	long r;
	struct identity *c = (struct identity *)buf;
	*step = STEP_PAYLOAD;
	if (next.id || len < sizeof *c) return -EINVAL;
	uint64_t need = sizeof *c + ((uint64_t)c->ngroups + 1) / 2 * 8 + (uint64_t)c->nbpf * 8;
	uint64_t ptrs = (uint64_t)c->npaths + c->nargs + c->nenv + 2;
	if (need > len || ptrs > len || c->nbpf > BPF_MAXINSNS) return -EINVAL;
	next.groups = (uint32_t *)(c + 1);
	uint64_t *bpf = (uint64_t *)(next.groups + ((c->ngroups + 1) & ~1u));
	next.prog = (struct sock_fprog){ (unsigned short)c->nbpf, (struct sock_filter *)bpf };
	char *p = buf + need, *end = buf + len, *head[6], **v = pages(ptrs * sizeof(char *));
	if (!v) return -ENOMEM;
	for (int i = 0; i < 6; i++) if (!(head[i] = word(&p, end))) return -EINVAL;
	next.paths = v, next.args = v + c->npaths, next.env = next.args + c->nargs + 1;
	for (uint32_t i = 0; i < c->npaths; i++) if (!(next.paths[i] = word(&p, end))) return -EINVAL;
	for (uint32_t i = 0; i < c->nargs; i++) if (!(next.args[i] = word(&p, end))) return -EINVAL;
	for (uint32_t i = 0; i < c->nenv; i++) if (!(next.env[i] = word(&p, end))) return -EINVAL;
	char *host = head[0], *domain = head[1], *ring = head[3];
	next.cwd = head[2];
	next.id = c;

	if (c->flags & F_TOP) {	// a root was mounted over ours: ".." leads onto it
		TRY(STEP_ROOT, S1(SYS_chdir, "/.."));
		TRY(STEP_ROOT, S1(SYS_chroot, "."));
	}
	TRY(STEP_LABEL, labels(head[4], head[5]));
	if (*host) TRY(STEP_HOSTNAME, S2(SYS_sethostname, host, slen(host)));
	if (*domain) TRY(STEP_DOMAINNAME, S2(SYS_setdomainname, domain, slen(domain)));
	if (*ring) TRY(STEP_KEYRING, keyring(ring));
	if (*head[5]) TRY(STEP_LABEL, attr("thread-self/attr/keycreate", "", ""));
	if (c->flags & F_PERSONALITY) TRY(STEP_PERSONALITY, S1(SYS_personality, c->personality));
	if (c->flags & F_MEMPOLICY)
		TRY(STEP_MEMPOLICY, S3(SYS_set_mempolicy, c->mempolicy, c->nodes, NODEWORDS * 64 + 1));
	for (int i = 0; i < 64; i++)
		if ((bounding & ~c->bnd) >> i & 1) TRY(STEP_BOUNDING, S2(SYS_prctl, PR_CAPBSET_DROP, i));
	closefds();	// before chdir: no path may lead through one of ours
	TRY(STEP_CLOSE, S3(SYS_close_range, SOCK, ~0U, CLOSE_RANGE_CLOEXEC_FLAG));
	S1(SYS_umask, c->umask);
	return c->flags & F_EARLY ? load(step) : 0;
}

// confine drops everything that the container's process shall not have.
static long confine(struct identity *c, int *step) {
	long r;
	// Without no_new_privs a filter needs CAP_SYS_ADMIN (seccomp(2)): load it before the capabilities go.
	if (!(c->flags & F_NNP) && (r = load(step)) < 0) return r;
	TRY(STEP_KEEPCAPS, S2(SYS_prctl, PR_SET_KEEPCAPS, 1));
	TRY(STEP_GROUPS, S2(SYS_setgroups, c->ngroups, next.groups));
	TRY(STEP_GID, S3(SYS_setresgid, c->gid, c->gid, c->gid));
	TRY(STEP_UID, S3(SYS_setresuid, c->uid, c->uid, c->uid));
	S2(SYS_prctl, PR_SET_DUMPABLE, 0);	// the change of ids has set it to fs.suid_dumpable, which may be 1
	TRY(STEP_KEEPCAPS, S2(SYS_prctl, PR_SET_KEEPCAPS, 0));
	return 0;
}

static long privileges(struct identity *c, int *step) {
	long r;
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2] = {
		{ (uint32_t)c->eff, (uint32_t)c->prm, (uint32_t)c->inh },
		{ (uint32_t)(c->eff >> 32), (uint32_t)(c->prm >> 32), (uint32_t)(c->inh >> 32) } };
	TRY(STEP_CAPSET, S2(SYS_capset, &h, d));
	S5(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	for (int i = 0; i < 64; i++)
		if (c->amb >> i & 1) TRY(STEP_AMBIENT, S5(SYS_prctl, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, i, 0, 0));
	if (c->flags & F_NNP) {
		TRY(STEP_NNP, S5(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		return load(step);
	}
	return 0;
}

// become does everything between "the sandbox is ready" and the program's first instruction. It returns only on
// failure; *step then names the step that failed. What it calls may have to pass the filter: see early in filter.go.
static long become(int *step) {
	struct identity *c = next.id;
	*step = STEP_PAYLOAD;
	if (!c) return -EINVAL;
	// As root first (a directory that only root may enter is a valid cwd); where root may not, e.g. on NFS, as the user.
	long r = indir(next.cwd, step);
	int again = r == -EACCES || r == -EPERM;
	if (r < 0 && !again) return r;
	r = confine(c, step);
	if (r < 0) return r;
	if (again) { r = indir(next.cwd, step); if (r < 0) return r; }
	r = privileges(c, step);
	if (r < 0) return r;
	*step = STEP_EXECVE;
	long kept = -ENOENT;
	for (uint32_t i = 0; i < c->npaths; i++) {	// execvp(3)
		r = S3(SYS_execve, next.paths[i], next.args, next.env);
		if (r == -EACCES) kept = r;
		else if (r != -ENOENT && r != -ENOTDIR) return r;
	}
	return kept;
}
