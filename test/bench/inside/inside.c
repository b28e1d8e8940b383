// inside: what is measured inside a guest. Static, so that it runs in any.
//
//   inside calls                   system calls: name, min and median in ns
//   inside send ADDRESS PORT SECS  sends bytes; whoever takes them counts
//   inside take ADDRESS PORT SECS  takes bytes: their number and the ns it took
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { repeats = 7 };

static double now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static int zero;
static char buffer[1 << 18];

static void getppid_(void) { syscall(SYS_getppid); }
static void read_(void) { if (read(zero, buffer, 4096) != 4096) exit(1); }
static void stat_(void) { struct stat s; if (stat("/etc/passwd", &s)) exit(1); }
static void fork_(void) {
	pid_t pid = fork();
	if (pid == 0) {
		execl("/bin/true", "true", (char *)0);
		_exit(1);
	}
	int status;
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status) exit(1);
}

static int compare(const void *a, const void *b) {
	double d = *(const double *)a - *(const double *)b;
	return d < 0 ? -1 : d > 0;
}

static void measure(const char *name, int n, void (*f)(void)) {
	double each[repeats];
	for (int r = 0; r < repeats; r++) {
		double begun = now();
		for (int i = 0; i < n; i++) f();
		each[r] = (now() - begun) / n;
	}
	qsort(each, repeats, sizeof each[0], compare);
	printf("%s %.0f %.0f\n", name, each[0], each[repeats / 2]);
}

static int calls(void) {
	zero = open("/dev/zero", O_RDONLY);
	if (zero < 0) return 1;
	measure("getppid", 20000, getppid_);
	measure("read", 5000, read_);
	measure("stat", 5000, stat_);
	measure("fork", 30, fork_);
	return 0;
}

static int network(char **argv) {
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[3]))};
	int take = !strcmp(argv[1], "take"), s = socket(AF_INET, SOCK_STREAM, 0);
	if (inet_pton(AF_INET, argv[2], &to.sin_addr) != 1 || connect(s, (void *)&to, sizeof to)) {
		perror("inside");
		return 1;
	}
	if (write(s, take ? "t" : "s", 1) != 1) return 1;
	double begun = now(), end = begun + atof(argv[4]) * 1e9, bytes = 0;
	ssize_t n;
	while (now() < end && (n = take ? read(s, buffer, sizeof buffer) : write(s, buffer, sizeof buffer)) > 0) bytes += n;
	printf("%.0f %.0f\n", bytes, now() - begun);
	return 0;
}

int main(int argc, char **argv) {
	if (argc == 2 && !strcmp(argv[1], "calls")) return calls();
	if (argc == 5) return network(argv);
	return 2;
}
