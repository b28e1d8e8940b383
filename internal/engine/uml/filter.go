package uml

import (
	"golang.org/x/sys/unix"

	"lodge/internal/launch"
)

// namespaces are the flags of clone(2) that make some.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// rules are what the guest's kernel, as a program of the host, is refused. The
// calls of the guest's own programs never get here: the kernel catches them
// before the host's filter counts, which therefore may only refuse and never
// kill.
func rules() []launch.Rule {
	return []launch.Rule{
		// A kernel that panics sends itself this signal until it takes
		// effect; to the first process of a jail it never does. It gives up
		// when it may not.
		{Calls: []string{"kill"}, Errno: unix.EPERM, When: &launch.Argument{Index: 1, Is: launch.Equal, Value: uint32(unix.SIGABRT)}},
		// Sockets of other families lead out of the jail, or into the depths
		// of the host's kernel.
		{Calls: []string{"socket", "socketpair"}, Errno: unix.EAFNOSUPPORT, When: &launch.Argument{Index: 0, Is: launch.Unequal, Value: unix.AF_UNIX}},
		{Calls: []string{"clone", "unshare"}, Errno: unix.EPERM, When: &launch.Argument{Index: 0, Is: launch.AnyOf, Value: namespaces}},
		{Calls: []string{"clone3"}, Errno: unix.ENOSYS}, // its flags cannot be seen; the C library takes clone then
		{Calls: []string{"io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "keyctl", "request_key"}, Errno: unix.ENOSYS},
		{Calls: []string{
			"acct", "adjtimex", "bpf", "chroot", "clock_adjtime", "clock_settime", "create_module", "delete_module", "fanotify_init",
			"finit_module", "fsconfig", "fsmount", "fsopen", "fspick", "init_module", "ioperm", "iopl", "kcmp", "kexec_file_load",
			"kexec_load", "lookup_dcookie", "mount", "mount_setattr", "move_mount", "move_pages", "migrate_pages", "name_to_handle_at",
			"nfsservctl", "open_by_handle_at", "open_tree", "perf_event_open", "pidfd_getfd", "pivot_root", "process_madvise",
			"process_vm_readv", "process_vm_writev", "quotactl", "quotactl_fd", "reboot", "setdomainname", "sethostname", "setns",
			"settimeofday", "swapoff", "swapon", "syslog", "umount2", "uselib", "userfaultfd", "vhangup",
		}, Errno: unix.EPERM},
	}
}
