/*
 * ociwrap: a small step before an OCI runtime. It edits config.json of a container that is created, in place, and then
 * executes the runtime that it was built for (-DRUNTIME='"/usr/bin/crun"'):
 *
 *  - ociVersion 1.y.z becomes 1.0.2: crun before 1.8.2 refuses later ones, and reads the same fields;
 *  - where root lacks CAP_SYS_RESOURCE, a negative oomScoreAdj becomes 0: CRI-O has no setting for that.
 *
 * Both are replaced by text of the same length, with spaces, which costs some 50 us.
 */
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

static void edit(const char *bundle)
{
	char path[4096];
	struct stat st;
	int fd;
	char *text, *p;

	snprintf(path, sizeof path, "%s/config.json", bundle);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &st) || st.st_size < 32)
		return;
	text = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (text == MAP_FAILED)
		return;
	p = memmem(text, (size_t)st.st_size, "\"ociVersion\"", 12);
	if (p && (p = memchr(p + 12, '"', 4)) && p + 64 < text + st.st_size) {
		char *end = memchr(++p, '"', 32);
		if (end && end - p >= 5) {
			memset(p, ' ', (size_t)(end - p) + 1);
			memcpy(p, "1.0.2\"", 6);
		}
	}
	p = memmem(text, (size_t)st.st_size, "\"oomScoreAdj\":-", 15);
	if (p && prctl(PR_CAPBSET_READ, CAP_SYS_RESOURCE, 0, 0, 0) == 0) {
		p += 14;
		while (p[1] >= '0' && p[1] <= '9')
			*p++ = ' ';
		*p = '0';
	}
	munmap(text, (size_t)st.st_size);
	close(fd);
}

int main(int argc, char **argv)
{
	int i, create = 0;
	const char *bundle = NULL;

	(void)argc;
	for (i = 1; argv[i]; i++) {
		if (!strcmp(argv[i], "create") || !strcmp(argv[i], "run"))
			create = 1;
		if ((!strcmp(argv[i], "--bundle") || !strcmp(argv[i], "-b")) && argv[i + 1])
			bundle = argv[i + 1];
		else if (!strncmp(argv[i], "--bundle=", 9))
			bundle = argv[i] + 9;
	}
	if (create && bundle)
		edit(bundle);
	execv(RUNTIME, argv);
	perror("ociwrap: " RUNTIME);
	return 127;
}
