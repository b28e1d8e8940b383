// image: lets QEMU map a memory image that it must not write to.
//
// QEMU opens the file that is a guest's memory to read and write, also if it
// maps it privately and so never writes to it. Many guests go on from one image,
// which none of them may change for the others: they are given a descriptor that
// cannot be written to. This library, which the loader puts before the C
// library, opens "/image/N" by handing out a copy of descriptor N. Everything
// else goes to the host's kernel as it is.
//
// QEMU gives back memory that the guest does not use by making a hole in the
// file, and then drops its own pages. Of an image only the latter is wanted.
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdarg.h>
#include <sys/syscall.h>

// Of the C library, which QEMU brings along.
long syscall(long number, ...);

enum { most = 4096 }; // descriptors of a jail

static int image = -1;

// number reads which descriptor a path means, -1 if none.
static int number(const char *path) {
	for (const char *want = "/image/"; *want; want++, path++)
		if (*path != *want) return -1;
	if (*path < '0' || *path > '9') return -1;
	int n = 0;
	for (; *path >= '0' && *path <= '9' && n < most; path++) n = 10 * n + (*path - '0');
	return n < most && !*path ? n : -1;
}

static int opened(const char *path, int flags, mode_t mode) {
	int from = number(path);
	if (from < 0) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
	return image = syscall(SYS_fcntl, from, F_DUPFD_CLOEXEC, 0);
}

#define MODE(flags) \
	mode_t mode = 0; \
	if (flags & (O_CREAT | __O_TMPFILE)) { \
		va_list more; \
		va_start(more, flags); \
		mode = va_arg(more, mode_t); \
		va_end(more); \
	}

// The names that QEMU may have been built to call: those at the end are of
// programs that are checked as they run.
int open(const char *path, int flags, ...) { MODE(flags) return opened(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(path, flags, mode); }
int __open_2(const char *path, int flags) { return opened(path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(path, flags, 0); }

static int allocated(int fd, int mode, off_t at, off_t size) {
	if (fd >= 0 && fd == image && mode & FALLOC_FL_PUNCH_HOLE) return 0;
	return syscall(SYS_fallocate, fd, mode, at, size);
}

int fallocate(int fd, int mode, off_t at, off_t size) { return allocated(fd, mode, at, size); }
int fallocate64(int fd, int mode, off64_t at, off64_t size) { return allocated(fd, mode, at, size); }
