// door: stands between the kernel of a paravirtual guest and the host. It gives
// it network cards that were opened for it, and has it wait where the host has no
// space left for its disks. It is what the loader puts before the C library.
//
// Cards: the kernel wants to make its tap devices itself: it opens /dev/net/tun and
// names the one it means by TUNSETIFF, which a program without capabilities in
// a network of its own may not do. In the jail that file is /dev/null, and a
// card is called "fd" and the number of a descriptor: this library then puts a
// copy of that descriptor in the place of the one that asks. The copy may be
// closed and taken again, as a card is switched off and on.
//
// Space: a guest whose disk refuses to write loses what its programs wrote, and
// trusts its file system no more. So a write that the host has no space for is
// tried again until it has, and a socket, whose descriptor LODGE_DOOR names, is
// told of which descriptor that is, now and then, and a negative number when
// there is space again.
#include <errno.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/ioctl.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>

// Of the C library, which the kernel brings along.
long syscall(long number, ...);
int dup2(int from, int to);
char *getenv(const char *name);

enum { most = 4096 }; // descriptors of a jail

// number reads the name of a card, -1 if it is none of these.
static int number(const struct ifreq *r) {
	const char *at = r->ifr_name;
	if (at[0] != 'f' || at[1] != 'd' || at[2] < '0' || at[2] > '9') return -1;
	int n = 0;
	for (at += 2; at < r->ifr_name + IFNAMSIZ && *at >= '0' && *at <= '9' && n < most; at++) n = 10 * n + (*at - '0');
	return n < most && at < r->ifr_name + IFNAMSIZ && !*at ? n : -1;
}

int ioctl(int fd, unsigned long request, void *argument) {
	int from = request == TUNSETIFF ? number(argument) : -1;
	if (from >= 0) return dup2(from, fd) < 0 ? -1 : 0;
	return syscall(SYS_ioctl, fd, request, argument);
}

static int32_t told = -1; // what the socket was told last

// tell says which descriptor's write waits, -1 for none. Nobody may be there to
// hear it: then it is said again with the next write.
static void tell(int32_t fd) {
	const char *at = getenv("LODGE_DOOR");
	int socket = 0;
	for (; at && *at >= '0' && *at <= '9' && socket < most; at++) socket = 10 * socket + (*at - '0');
	if (!at || *at || syscall(SYS_sendto, socket, &fd, sizeof fd, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0) == sizeof fd) told = fd;
}

// pwrite64 is what the kernel writes its disks with, in a thread of its own.
long pwrite64(int fd, const char *from, unsigned long n, long at) {
	const struct timespec pause = {.tv_sec = 1};
	unsigned long done = 0;
	while (done < n) {
		long more = syscall(SYS_pwrite64, fd, from + done, n - done, at + done);
		if (more > 0) {
			done += more;
		} else if (more == 0 || (errno != ENOSPC && errno != EDQUOT)) {
			break;
		} else {
			tell(fd);
			syscall(SYS_nanosleep, &pause, 0);
		}
	}
	int why = errno;
	if (told >= 0) tell(-1);
	errno = why;
	return done || !n ? (long)done : -1;
}
