package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// feature is something the kernel must be able to do; probe tries it out and
// leaves nothing behind.
type feature struct {
	name  string
	probe func(ctx context.Context, o Options) error
	state State // how bad it is without
	cause string
	fix   string
}

const newerKernel = "boot a newer kernel: Debian's backports have one (apt-get install -t bookworm-backports linux-image-amd64)"

func features() []feature {
	return []feature{
		{"namespaces", probeNamespaces, Fault, "guests cannot be kept apart", "boot a kernel with CONFIG_NAMESPACES and all kinds below it"},
		{"user namespaces", probeUserNS, Fault, "guests cannot have users of their own", "sysctl -w user.max_user_namespaces=96000 kernel.unprivileged_userns_clone=1"},
		{"time namespaces", func(context.Context, Options) error { _, err := os.Stat("/proc/self/ns/time"); return err }, Warning,
			"uptime in a guest is the host's", newerKernel},
		{"overlayfs", probeOverlay, Fault, "guests cannot share an image", "modprobe overlay"},
		{"overlayfs by descriptor", probeOverlayFD, Fault, "overlays cannot be made of detached layers (Linux 6.15): no OS-level guest can start", "boot Linux 6.15 or newer, such as that of Debian's trixie-backports"},
		{"erofs", func(context.Context, Options) error { return hasFilesystem("erofs") }, Fault, "images cannot be mounted", "modprobe erofs"},
		{"erofs from a file", probeErofsFile, Warning, "each image takes a loop device (Linux 6.12 needs none), and its pages are cached twice", newerKernel},
		{"id-mapped mounts", probeIDMap, Fault, "a guest's files cannot be given its own range of users on this file system", "put the data directory on ext4, btrfs or xfs, and boot Linux 5.19 or newer"},
		{"btrfs", func(context.Context, Options) error { return hasFilesystem("btrfs") }, Warning, "quotas are counted but not enforced", "modprobe btrfs"},
		{"network devices", probeLinks, Fault, "guests have no network", "modprobe -a bridge veth"},
		{"nftables", probeNft, Fault, "guests cannot reach other networks, and can pretend to be each other", "apt-get install nftables; modprobe -a nf_tables nft_masq nft_ct"},
		{"pidfd", probePidfd, Fault, "guests cannot be watched safely", newerKernel},
		{"seccomp", probeSeccomp, Fault, "dangerous system calls cannot be kept from guests", "boot a kernel with CONFIG_SECCOMP_FILTER"},
	}
}

func kernelChecks() []check {
	var out []check
	for _, f := range features() {
		out = append(out, check{f.name, "kernel", func(ctx context.Context, o Options) verdict { return judgeFeature(f, f.probe(ctx, o)) }})
	}
	return out
}

// errUntried says that a probe lacked something that has a check of its own.
var errUntried = errors.New("could not be tried")

func judgeFeature(f feature, err error) verdict {
	switch {
	case err == nil:
		return good("works")
	case errors.Is(err, errUntried):
		return verdict{state: OK, found: err.Error()}
	case errors.Is(err, unix.EPERM) && os.Geteuid() != 0:
		return verdict{state: Warning, found: "may not be tried: " + err.Error(), cause: "the doctor does not run as root", fix: "sudo lodge doctor"}
	default:
		return verdict{state: f.state, found: "does not work: " + err.Error(), cause: f.cause, fix: f.fix}
	}
}

func probeNamespaces(context.Context, Options) error {
	var missing []string
	for _, ns := range []string{"mnt", "pid", "net", "uts", "ipc", "cgroup", "user"} {
		if _, err := os.Stat("/proc/self/ns/" + ns); err != nil {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the kernel lacks %s", strings.Join(missing, ", "))
	}
	return nil
}

func hasFilesystem(name string) error {
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	if strings.Contains(string(known), "\t"+name+"\n") {
		return nil
	}
	if err := exec.Command("modprobe", name).Run(); err != nil {
		return fmt.Errorf("the kernel has no %s", name)
	}
	return nil
}

// withUserNS calls use with a descriptor of a user namespace that maps a
// guest's range of ids, and which is gone afterwards.
func withUserNS(ctx context.Context, use func(userns int) error) error {
	cmd := exec.CommandContext(ctx, "cat") // waits until its input ends
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1_000_000_000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Wait()
	defer in.Close()
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return use(fd)
}

func probeUserNS(ctx context.Context, _ Options) error {
	return withUserNS(ctx, func(int) error { return nil })
}

// probeIDMap maps a copy of the mount that the data directory is on; the copy
// is attached nowhere.
func probeIDMap(ctx context.Context, o Options) error {
	return withUserNS(ctx, func(userns int) error {
		tree, err := unix.OpenTree(unix.AT_FDCWD, nearest(o.DataDir), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("open_tree: %w", err)
		}
		defer unix.Close(tree)
		return unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)})
	})
}

// detached makes a file system that is attached nowhere and gone when the
// descriptor is closed.
func detached(fstype string, configure func(fsfd int) error, attrs int) (int, error) {
	fsfd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fsfd)
	if configure != nil {
		if err := configure(fsfd); err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fmt.Errorf("making %s: %w", fstype, err)
	}
	return unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, attrs)
}

// probeOverlay only knows whether the file system is there; the probe by
// descriptor tries it.
func probeOverlay(context.Context, Options) error { return hasFilesystem("overlay") }

func probeOverlayFD(context.Context, Options) error {
	mem, err := detached("tmpfs", nil, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mem)
	fds := map[string]int{}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	keys := []string{"lowerdir+", "upperdir", "workdir"}
	for _, k := range keys {
		if err := unix.Mkdirat(mem, k, 0o700); err != nil {
			return err
		}
		fd, err := unix.Openat(mem, k, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		fds[k] = fd
	}
	over, err := detached("overlay", func(fsfd int) error {
		for _, k := range keys {
			if err := unix.FsconfigSetFd(fsfd, k, fds[k]); err != nil {
				return fmt.Errorf("%s: %w", k, err)
			}
		}
		return nil
	}, 0)
	if err != nil {
		return err
	}
	return unix.Close(over)
}

// probeErofsFile mounts an image of an empty folder straight from its file.
func probeErofsFile(ctx context.Context, _ Options) error {
	mkfs, err := exec.LookPath("mkfs.erofs")
	if err != nil {
		return fmt.Errorf("%w: mkfs.erofs is not installed", errUntried)
	}
	dir, err := os.MkdirTemp("", "lodge-doctor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	image, empty := filepath.Join(dir, "image"), filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, mkfs, image, empty).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: mkfs.erofs: %s", errUntried, out)
	}
	fd, err := detached("erofs", func(fsfd int) error {
		return errors.Join(unix.FsconfigSetString(fsfd, "source", image), unix.FsconfigSetFlag(fsfd, "ro"))
	}, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// inOwnNetwork calls do on a thread in a network namespace of its own. The
// thread ends with it, and the kernel removes whatever do made.
func inOwnNetwork(do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime then ends the thread
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("a network namespace: %w", err)
			return
		}
		done <- do()
	}()
	return <-done
}

func probeLinks(context.Context, Options) error {
	return inOwnNetwork(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		for _, l := range []netlink.Link{
			&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}},
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe1"}, PeerName: "probe2"},
		} {
			if err := h.LinkAdd(l); err != nil {
				return fmt.Errorf("a %s: %w", l.Type(), err)
			}
		}
		return nil
	})
}

// probeNft lets the kernel take rules of each kind that Lodge uses.
func probeNft(ctx context.Context, _ Options) error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return fmt.Errorf("%w: nft is not installed", errUntried)
	}
	const rules = `table inet lodge-probe {
		set s { type ipv4_addr . ether_addr; }
		chain a { type nat hook postrouting priority srcnat; ip saddr 192.0.2.0/24 masquerade; }
		chain b { type filter hook forward priority 0; ct state established accept; }
	}
	table bridge lodge-probe {
		chain a { type filter hook prerouting priority 0; iifname "lg0" ether saddr != 02:00:00:00:00:01 drop; }
	}`
	return inOwnNetwork(func() error {
		cmd := exec.CommandContext(ctx, nft, "-f", "-")
		cmd.Stdin = strings.NewReader(rules)
		if out, err := cmd.CombinedOutput(); err != nil {
			first, _, _ := strings.Cut(string(out), "\n")
			return fmt.Errorf("%s (%w)", first, err)
		}
		return nil
	})
}

func probePidfd(context.Context, Options) error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

func probeSeccomp(context.Context, Options) error {
	known, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil {
		return err
	}
	for _, a := range []string{"errno", "allow", "user_notif"} {
		if !strings.Contains(string(known), a) {
			return fmt.Errorf("the kernel lacks the action %s", a)
		}
	}
	return nil
}
