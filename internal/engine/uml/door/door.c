// door: gives the kernel of a paravirtual guest network cards that were opened
// for it.
//
// The kernel wants to make its tap devices itself: it opens /dev/net/tun and
// names the one it means by TUNSETIFF, which a program without capabilities in
// a network of its own may not do. In the jail that file is /dev/null, and a
// card is called "fd" and the number of a descriptor: this library, which the
// loader puts before the C library, then puts a copy of that descriptor in the
// place of the one that asks. The copy may be closed and taken again, as a
// card is switched off and on. Everything else goes to the host's kernel as it
// is.
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/ioctl.h>
#include <sys/syscall.h>

// Of the C library, which the kernel brings along.
long syscall(long number, ...);
int dup2(int from, int to);

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
