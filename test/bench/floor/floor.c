/*
 * floor: the least that the kernel takes for a pod with one container: the namespaces, mounts, cgroups and programs that a
 * container runtime makes for it, by a bare C program. No network but the namespace, no seccomp, no records, no log, no RPC.
 *
 *	floor DIR CGROUP ROUNDS
 *
 * DIR gets the root file systems (overlay), CGROUP is the parent, below every hierarchy's root. Beside the program lies "pause",
 * which is what both processes execute. Prints JSON: start and end in ms, CPU of start in ms as CGROUP has it.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CGROUPS "/sys/fs/cgroup"
#define TRY(call) do { if ((call) < 0) die(#call); } while (0)

static char hierarchy[32][300]; /* directories below which cgroups are made */
static int hierarchies, v1;
static const char *dir, *group;
static char program[4096];

static void die(const char *what)
{
	printf("%s: %s\n", what, strerror(errno));
	fflush(stdout);
	_exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

static double cpu(void)
{
	char path[4096], text[4096] = "", *at;
	int fd;

	snprintf(path, sizeof path, v1 ? CGROUPS "/cpuacct%s/cpuacct.usage" : CGROUPS "%s/cpu.stat", group);
	TRY(fd = open(path, O_RDONLY | O_CLOEXEC));
	TRY(read(fd, text, sizeof text - 1));
	close(fd);
	if (v1)
		return atof(text) / 1e6;
	at = strstr(text, "usage_usec ");
	return at ? atof(at + 11) / 1e3 : 0;
}

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC), n;
	if (fd < 0)
		return -1;
	n = (int)write(fd, text, strlen(text));
	close(fd);
	return n;
}

static void find_hierarchies(void)
{
	DIR *d;
	struct dirent *e;
	struct stat st;
	char path[600];

	if (stat(CGROUPS "/cgroup.procs", &st) == 0) {
		strcpy(hierarchy[hierarchies++], CGROUPS);
		return;
	}
	v1 = 1;
	if (!(d = opendir(CGROUPS)))
		die(CGROUPS);
	while ((e = readdir(d)) && hierarchies < 32) {
		snprintf(path, sizeof path, CGROUPS "/%s/cgroup.procs", e->d_name);
		/* "unified" of a hybrid layout and links to merged hierarchies are left out. */
		if (strcmp(e->d_name, "unified") && e->d_type != DT_LNK && stat(path, &st) == 0)
			snprintf(hierarchy[hierarchies++], sizeof hierarchy[0], CGROUPS "/%.200s", e->d_name);
	}
	closedir(d);
}

/* cgroup makes (or removes) a cgroup in all hierarchies. */
static void cgroup(const char *name, int make)
{
	char path[4096], file[4200];
	int i;

	for (i = 0; i < hierarchies; i++) {
		snprintf(path, sizeof path, "%s%s/%s", hierarchy[i], group, name);
		if (!make) {
			for (int tries = 0; rmdir(path) < 0 && errno == EBUSY && tries < 2000; tries++)
				usleep(500);
			continue;
		}
		if (mkdir(path, 0755) < 0 && errno == ENOENT) {
			/* The parents are made the first time only. */
			snprintf(file, sizeof file, "%s%.*s", hierarchy[i], (int)(strrchr(group, '/') - group), group);
			mkdir(file, 0755);
			snprintf(file, sizeof file, "%s%s", hierarchy[i], group);
			mkdir(file, 0755);
			TRY(mkdir(path, 0755));
		}
		if (strstr(hierarchy[i], "cpuset")) {
			/* A v1 cpuset takes no process before it has CPUs and memory nodes. */
			snprintf(file, sizeof file, "%s%s/cgroup.clone_children", hierarchy[i], group);
			put(file, "1");
			static const char *const files[] = {"cpuset.cpus", "cpuset.mems"};
			for (int k = 0; k < 2; k++) {
				char text[256] = "";
				int fd, n;
				snprintf(file, sizeof file, CGROUPS "/cpuset/%s", files[k]);
				TRY(fd = open(file, O_RDONLY));
				n = (int)read(fd, text, sizeof text - 1);
				close(fd);
				if (n <= 0)
					continue;
				/* outermost first */
				snprintf(file, sizeof file, "%s%.*s/%s", hierarchy[i], (int)(strrchr(group, '/') - group), group, files[k]);
				put(file, text);
				snprintf(file, sizeof file, "%s%s/%s", hierarchy[i], group, files[k]);
				put(file, text);
				snprintf(file, sizeof file, "%s/%s", path, files[k]);
				put(file, text);
			}
		}
		snprintf(file, sizeof file, v1 ? "%s/memory.limit_in_bytes" : "%s/memory.max", path);
		put(file, "536870912");
		snprintf(file, sizeof file, v1 ? "%s/cpu.shares" : "%s/cpu.weight", path);
		put(file, "102");
	}
}

static void join(const char *name)
{
	char path[4096];
	for (int i = 0; i < hierarchies; i++) {
		snprintf(path, sizeof path, "%s%s/%s/%s", hierarchy[i], group, name, v1 ? "tasks" : "cgroup.procs");
		if (put(path, "0") < 0)
			die(path);
	}
}

static void enter(int pid, const char *ns)
{
	char path[64];
	int fd;
	snprintf(path, sizeof path, "/proc/%d/ns/%s", pid, ns);
	TRY(fd = open(path, O_RDONLY | O_CLOEXEC));
	TRY(setns(fd, 0));
	close(fd);
}

static void rootfs(int round)
{
	static const struct { const char *name; int minor; } devices[] = {{"null", 3}, {"zero", 5}, {"full", 7}, {"random", 8}, {"urandom", 9}};
	static const char *const masked[] = {"/proc/kcore", "/proc/keys", "/proc/timer_list"}, *const readonly[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
	char root[4096], options[12400], path[4200];
	unsigned i;

	TRY(mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL));
	snprintf(root, sizeof root, "%s/floor/%d/merged", dir, round);
	snprintf(options, sizeof options, "lowerdir=%s/floor/image,upperdir=%s/floor/%d/upper,workdir=%s/floor/%d/work", dir, dir, round, dir, round);
	TRY(mount("overlay", root, "overlay", 0, options));
	TRY(chdir(root));
	TRY(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	TRY(mount("tmpfs", "dev", "tmpfs", MS_NOSUID, "mode=755,size=64k"));
	for (i = 0; i < sizeof devices / sizeof *devices; i++) {
		snprintf(path, sizeof path, "dev/%s", devices[i].name);
		TRY(mknod(path, S_IFCHR | 0666, makedev(1, (unsigned)devices[i].minor)));
	}
	TRY(mknod("dev/tty", S_IFCHR | 0666, makedev(5, 0)));
	TRY(mkdir("dev/pts", 0755));
	TRY(mkdir("dev/shm", 0755));
	TRY(mkdir("dev/mqueue", 0755));
	TRY(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"));
	TRY(symlink("pts/ptmx", "dev/ptmx"));
	TRY(mount("mqueue", "dev/mqueue", "mqueue", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
	TRY(mount("shm", "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=64m"));
	TRY(mount("sysfs", "sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, NULL));
	/* /etc/hosts, /etc/hostname, /etc/resolv.conf, the termination log */
	for (i = 0; i < 4; i++)
		TRY(mount(program, "file", NULL, MS_BIND, NULL));
	TRY((int)syscall(SYS_pivot_root, ".", "."));
	TRY(umount2(".", MNT_DETACH));
	TRY(chdir("/"));
	for (i = 0; i < sizeof masked / sizeof *masked; i++)
		if (mount("/dev/null", masked[i], NULL, MS_BIND, NULL) < 0 && errno != ENOENT)
			die(masked[i]);
	for (i = 0; i < sizeof readonly / sizeof *readonly; i++)
		if (mount(readonly[i], readonly[i], NULL, MS_BIND, NULL) < 0 && errno != ENOENT)
			die(readonly[i]);
		else
			mount(NULL, readonly[i], NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL);
}

/* start clones a process that executes pause, and returns when it does. With pause > 0 it is a container in that pod. */
static int start(int round, const char *name, int pause)
{
	int ends[2], pid;
	char byte;

	cgroup(name, 1);
	TRY(pipe2(ends, O_CLOEXEC));
	TRY(pid = (int)syscall(SYS_clone, (pause ? CLONE_NEWPID | CLONE_NEWNS : CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) | SIGCHLD, 0, 0, 0, 0));
	if (pid == 0) {
		join(name);
		if (pause) {
			enter(pause, "net");
			enter(pause, "ipc");
			enter(pause, "uts");
			rootfs(round);
		}
		TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
		execl(pause ? "/pause" : program, "pause", NULL);
		die("exec");
	}
	close(ends[1]);
	if (read(ends[0], &byte, 1) != 0)
		die("start");
	close(ends[0]);
	return pid;
}

static void make(int round, const char *name)
{
	char path[4096];
	snprintf(path, sizeof path, "%s/floor/%d%s", dir, round, name);
	TRY(mkdir(path, 0755));
}

static void image(void)
{
	static const char *const dirs[] = {"", "/image", "/image/proc", "/image/dev", "/image/sys"};
	char path[4200], text[8200];
	unsigned i;

	for (i = 0; i < sizeof dirs / sizeof *dirs; i++) {
		snprintf(path, sizeof path, "%s/floor%s", dir, dirs[i]);
		TRY(mkdir(path, 0755));
	}
	snprintf(text, sizeof text, "cp '%s' '%s/floor/image/pause' && touch '%s/floor/image/file'", program, dir, dir);
	if (system(text))
		die("cp");
}

static void end(int pid)
{
	kill(pid, SIGKILL);
	TRY(waitpid(pid, NULL, 0));
}

int main(int argc, char **argv)
{
	static const char *const below[] = {"", "/upper", "/work", "/merged"};
	char text[8200];
	int rounds;

	if (argc != 4)
		return 2;
	dir = argv[1];
	group = argv[2];
	rounds = atoi(argv[3]);
	snprintf(program, sizeof program, "%.*s/pause", (int)(strrchr(argv[0], '/') - argv[0]), argv[0]);
	find_hierarchies();
	image();
	printf("[");
	for (int r = 0; r < rounds; r++) {
		double a = now(), b, c = cpu();
		int pause = start(r, "pause", 0), container;

		for (int i = 0; i < 4; i++)
			make(r, below[i]);
		container = start(r, "container", pause);
		b = now();
		printf("%s{\"start\": %.3f, \"cpu\": %.3f", r ? ",\n" : "", b - a, cpu() - c);
		b = now();
		end(container);
		end(pause);
		cgroup("container", 0);
		cgroup("pause", 0);
		printf(", \"end\": %.3f}", now() - b);
		fflush(stdout);
	}
	printf("]\n");
	snprintf(text, sizeof text, "rm -rf '%s/floor'", dir);
	return system(text) ? 1 : 0;
}
