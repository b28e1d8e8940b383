/*
 * floor.c - the least a program has to do to make a guest, as fast as this
 * kernel does it: the yardstick for Lodge's own start.
 *
 * It does what a start needs and nothing that a product needs besides: no
 * seccomp filter, no capability dropped, no masked paths, no terminal, no
 * network card, no record of what it did, no errors told apart.
 *
 *   floor IMAGE DIR FIRST-ID GROUP...
 *
 * makes and removes one guest for each line that it reads, and answers with the
 * nanoseconds from the beginning to the guest's first write (a file "ready" in
 * its root, seen on the host's side) and from the kill until nothing is left.
 * IMAGE is the root tree, DIR where volumes go; a GROUP whose name begins with
 * "v2:" is a directory of the unified hierarchy, others are of version 1.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/mount.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/inotify.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(call) ({ long r_ = (long)(call); if (r_ < 0) fail(#call); r_; })

enum { MAX_GROUPS = 16, IDS = 65536 };

struct hierarchy {
	int dir;      /* the parent, opened once */
	int v2;
};

static const char *image, *volumes;
static unsigned first_id;
static struct hierarchy groups[MAX_GROUPS];
static int group_count;

static void fail(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	_exit(1);
}

static long long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* put writes a value to a control file; a file that is not there is skipped. */
static void put(int dir, const char *file, const char *value)
{
	int fd = openat(dir, file, O_WRONLY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return;
	CHECK(fd);
	CHECK(write(fd, value, strlen(value)));
	close(fd);
}

static int new_fs(const char *type, const char *options[][2], int attributes)
{
	int fs = CHECK(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC));
	for (int i = 0; options && options[i][0]; i++)
		CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_STRING, options[i][0], options[i][1], 0));
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	int mnt = CHECK(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes));
	close(fs);
	return mnt;
}

static void attach(int mnt, const char *path)
{
	CHECK(syscall(SYS_move_mount, mnt, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH));
	close(mnt);
}

static int mapped_clone(const char *path, int userns)
{
	int tree = CHECK(syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
	struct mount_attr a = { .attr_set = MOUNT_ATTR_IDMAP, .userns_fd = userns };
	CHECK(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH, &a, sizeof a));
	return tree;
}

/* act_as makes new files belong to id, keeping every capability. */
static void act_as(unsigned id)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2];
	setfsgid(id);
	setfsuid(id);
	CHECK(syscall(SYS_capget, &h, d));
	d[0].effective = d[0].permitted;
	d[1].effective = d[1].permitted;
	CHECK(syscall(SYS_capset, &h, d));
}

static int overlay(const char *volume, int userns, unsigned id)
{
	int lower = mapped_clone(image, userns), top = mapped_clone(volume, userns);
	int upper = CHECK(openat(top, "upper", O_PATH | O_DIRECTORY | O_CLOEXEC));
	int work = CHECK(openat(top, "work", O_PATH | O_DIRECTORY | O_CLOEXEC));
	int fs = CHECK(syscall(SYS_fsopen, "overlay", FSOPEN_CLOEXEC));
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_FD, "lowerdir+", NULL, lower));
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_FD, "upperdir", NULL, upper));
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_SET_FD, "workdir", NULL, work));
	act_as(id);
	CHECK(syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0));
	act_as(0);
	int mnt = CHECK(syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV));
	close(fs), close(upper), close(work), close(lower), close(top);
	return mnt;
}

static int devices(unsigned id)
{
	static const struct { const char *name; int major, minor; } all[] = {
		{ "null", 1, 3 }, { "zero", 1, 5 }, { "full", 1, 7 }, { "random", 1, 8 }, { "urandom", 1, 9 }, { "tty", 5, 0 },
	};
	char text[16];
	snprintf(text, sizeof text, "%u", id);
	const char *options[][2] = { { "mode", "755" }, { "uid", text }, { "gid", text }, { 0 } };
	int mnt = new_fs("tmpfs", options, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC);
	for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
		CHECK(mknodat(mnt, all[i].name, S_IFCHR | 0666, makedev(all[i].major, all[i].minor)));
		CHECK(fchownat(mnt, all[i].name, id, id, 0));
	}
	CHECK(mkdirat(mnt, "pts", 0755));
	CHECK(mkdirat(mnt, "mqueue", 0755));
	CHECK(mkdirat(mnt, "shm", 01777));
	return mnt;
}

static void send_fds(int to, int *fds)
{
	char c = 0, buf[CMSG_SPACE(2 * sizeof(int))] = { 0 };
	struct iovec io = { &c, 1 };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = sizeof buf };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(2 * sizeof(int));
	memcpy(CMSG_DATA(h), fds, 2 * sizeof(int));
	CHECK(sendmsg(to, &m, 0));
}

static void receive_fds(int from, int *fds)
{
	char c, buf[CMSG_SPACE(2 * sizeof(int))];
	struct iovec io = { &c, 1 };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1, .msg_control = buf, .msg_controllen = sizeof buf };
	if (recvmsg(from, &m, MSG_CMSG_CLOEXEC) <= 0)
		_exit(1);
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&m)), 2 * sizeof(int));
}

static void guest(int sock, int *tasks, int task_count)
{
	int fds[2];
	/* "0" to tasks, by a single thread, takes no host-wide lock. */
	for (int i = 0; i < task_count; i++)
		CHECK(write(tasks[i], "0", 1));
	receive_fds(sock, fds);
	CHECK(unshare(CLONE_NEWCGROUP));
	CHECK(setresgid(0, 0, 0));
	CHECK(setgroups(0, NULL));
	CHECK(setresuid(0, 0, 0));
	CHECK(mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL));
	attach(fds[0], "/tmp");
	CHECK(chdir("/tmp"));
	const int safe = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, still = safe | MOUNT_ATTR_NOEXEC;
	const char *pts[][2] = { { "ptmxmode", "666" }, { "mode", "620" }, { 0 } };
	attach(new_fs("proc", NULL, still), "proc");
	attach(new_fs("sysfs", NULL, still), "sys");
	attach(new_fs("cgroup2", NULL, still), "sys/fs/cgroup");
	attach(fds[1], "dev");
	attach(new_fs("devpts", pts, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), "dev/pts");
	attach(new_fs("mqueue", NULL, still), "dev/mqueue");
	attach(new_fs("tmpfs", NULL, safe), "dev/shm");
	attach(new_fs("tmpfs", NULL, safe), "run");
	CHECK(syscall(SYS_pivot_root, ".", "."));
	CHECK(umount2(".", MNT_DETACH));
	CHECK(chdir("/"));
	CHECK(sethostname("floor", 5));
	CHECK(setsid());
	char *argv[] = { "/bin/sh", "-c", "echo r >/ready; exec sleep 1000", NULL };
	char *env[] = { "PATH=/sbin:/bin:/usr/sbin:/usr/bin", NULL };
	execve(argv[0], argv, env);
	fail("execve");
}

/* join makes the guest's groups and opens what the guest enters them by. */
static int join(const char *name, int *tasks, int *task_count, unsigned id)
{
	int unified = -1;
	for (int i = 0; i < group_count; i++) {
		CHECK(mkdirat(groups[i].dir, name, 0755));
		int dir = CHECK(openat(groups[i].dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
		put(dir, groups[i].v2 ? "memory.max" : "memory.limit_in_bytes", "536870912");
		put(dir, groups[i].v2 ? "cpu.max" : "cpu.cfs_quota_us", "100000");
		put(dir, "pids.max", "1000");
		if (groups[i].v2) {
			unified = dir;
			CHECK(fchown(dir, id, id));
			CHECK(fchownat(dir, "cgroup.procs", id, id, 0));
			CHECK(fchownat(dir, "cgroup.subtree_control", id, id, 0));
			CHECK(fchownat(dir, "cgroup.threads", id, id, 0));
			continue;
		}
		tasks[(*task_count)++] = CHECK(openat(dir, "tasks", O_WRONLY | O_CLOEXEC));
		close(dir);
	}
	return unified;
}

static pid_t start(const char *name, const char *volume, unsigned id, int *pidfd)
{
	int tasks[MAX_GROUPS], task_count = 0, sock[2];
	int unified = join(name, tasks, &task_count, id);
	CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock));
	struct clone_args a = {
		.flags = CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET,
		.pidfd = (unsigned long)pidfd, .exit_signal = SIGCHLD, .cgroup = unified,
	};
	pid_t pid = CHECK(syscall(SYS_clone3, &a, sizeof a));
	if (pid == 0)
		guest(sock[1], tasks, task_count);
	close(sock[1]), close(unified);
	for (int i = 0; i < task_count; i++)
		close(tasks[i]);
	char text[64];
	snprintf(text, sizeof text, "/proc/%d", pid);
	int proc = CHECK(open(text, O_PATH | O_DIRECTORY | O_CLOEXEC));
	snprintf(text, sizeof text, "0 %u %d\n", id, IDS);
	put(proc, "uid_map", text);
	put(proc, "gid_map", text);
	int userns = CHECK(openat(proc, "ns/user", O_RDONLY | O_CLOEXEC));
	int fds[2] = { overlay(volume, userns, id), devices(id) };
	send_fds(sock[0], fds);
	close(proc), close(userns), close(fds[0]), close(fds[1]), close(sock[0]);
	return pid;
}

/* stop kills the guest and removes its groups. */
static void stop(const char *name, int pidfd)
{
	siginfo_t info;
	CHECK(syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0));
	CHECK(waitid(P_PIDFD, pidfd, &info, WEXITED | __WALL));
	close(pidfd);
	for (int i = 0; i < group_count; i++)
		while (unlinkat(groups[i].dir, name, AT_REMOVEDIR) < 0) {
			if (errno != EBUSY)
				fail("rmdir");
			usleep(100);
		}
}

static void one_round(int number)
{
	char name[32], volume[512], path[600];
	int pidfd = -1;
	long long begun = now();
	snprintf(name, sizeof name, "floor%d", number);
	snprintf(volume, sizeof volume, "%s/%s", volumes, name);
	CHECK(mkdir(volume, 0711));
	snprintf(path, sizeof path, "%s/work", volume);
	CHECK(mkdir(path, 0700));
	snprintf(path, sizeof path, "%s/upper", volume);
	CHECK(mkdir(path, 0755));
	int watch = CHECK(inotify_init1(IN_CLOEXEC));
	CHECK(inotify_add_watch(watch, path, IN_CREATE));
	start(name, volume, first_id + (unsigned)number * IDS, &pidfd);
	struct pollfd wait[] = { { .fd = watch, .events = POLLIN }, { .fd = pidfd, .events = POLLIN } };
	CHECK(poll(wait, 2, 20000));
	if (!(wait[0].revents & POLLIN))
		fail("the guest ended before it wrote");
	long long ready = now();
	close(watch);
	usleep(20000);
	long long killed = now();
	stop(name, pidfd);
	printf("%lld %lld\n", ready - begun, now() - killed);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	char line[16];
	if (argc < 5 || argc - 4 > MAX_GROUPS)
		return fprintf(stderr, "usage: floor IMAGE DIR FIRST-ID GROUP...\n"), 2;
	image = argv[1], volumes = argv[2], first_id = strtoul(argv[3], NULL, 10);
	umask(0);
	for (int i = 4; i < argc; i++) {
		int v2 = !strncmp(argv[i], "v2:", 3);
		const char *path = argv[i] + (v2 ? 3 : 0);
		if (mkdir(path, 0755) < 0 && errno != EEXIST)
			fail(path);
		groups[group_count++] = (struct hierarchy){ CHECK(open(path, O_PATH | O_DIRECTORY | O_CLOEXEC)), v2 };
	}
	for (int n = 0; fgets(line, sizeof line, stdin); n++)
		one_round(n);
	return 0;
}
