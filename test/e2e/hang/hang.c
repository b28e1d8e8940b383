// hang: keep every processor of the guest busy with what its kernel prefers to
// all else, so that nothing else in the guest runs again.
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <unistd.h>

int main(void) {
	// Else the kernel keeps a twentieth of the time for the others.
	int limit = open("/proc/sys/kernel/sched_rt_runtime_us", O_WRONLY);
	if (limit < 0 || write(limit, "-1", 2) != 2) {
		perror("hang: sched_rt_runtime_us");
		return 1;
	}
	struct sched_param most = {.sched_priority = sched_get_priority_max(SCHED_FIFO)};
	for (long n = sysconf(_SC_NPROCESSORS_ONLN); n > 1; n--)
		if (fork() == 0)
			break;
	if (sched_setscheduler(0, SCHED_FIFO, &most)) {
		perror("hang: sched_setscheduler");
		return 1;
	}
	for (;;)
		;
}
