package inside

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
)

// bootTime is how long /init may take before it gives up: a guest that cannot
// start must not look like one that does.
const bootTime = 5 * time.Minute

// Boot is the agent's first life, as /init: it makes the guest's root, starts
// the agent there, and becomes the guest's init. It never returns: what fails is
// said in one line on the console, and the guest is powered off.
func Boot() {
	time.AfterFunc(bootTime, func() { giveUp(errors.New("starting the guest took too long")) })
	giveUp(boot())
}

func giveUp(err error) {
	say("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	powerOff(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// powerOff ends the guest, once all is on its disk and the console.
func powerOff(how int) {
	unix.Sync()
	_ = unix.IoctlSetInt(2, unix.TCSBRK, 1)
	_ = unix.Reboot(how)
	for {
		time.Sleep(time.Hour) // the kernel is on its way out
	}
}

// Where /init puts things together. All of it is out of the guest's sight.
const (
	basePlace    = "/base"
	volumePlace  = "/volume"
	rootPlace    = "/root"
	modules      = "/modules"
	modulesPlace = "/all-modules"
)

// boot returns only if something failed.
func boot() error {
	unix.Umask(0)
	if err := kernelFiles(); err != nil {
		return err
	}
	f, err := os.Open(agent.ConfigPath)
	if err != nil {
		return fmt.Errorf("the initramfs has no description of the guest: %w", err)
	}
	c, err := readConfig(f)
	if err != nil {
		return fmt.Errorf("the description of the guest: %w", err)
	}
	if len(c.Init) == 0 || c.Init[0] == "" {
		c.Init = []string{"/sbin/init"}
	}
	if err := loadModules(); err != nil {
		return err
	}
	// What follows needs no device of the network's, so those may take their time.
	volume, err := makeRoot(c)
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("host name %q: %w", c.Hostname, err)
	}
	if err := configureNetwork(c.NICs); err != nil {
		return err
	}
	agentProgram, err := os.Open("/init")
	if err != nil {
		return err
	}
	config, err := os.Open(agent.ConfigPath)
	if err != nil {
		return err
	}
	if err := changeRoot(c); err != nil {
		return err
	}
	if err := startAgent(agentProgram, config, volume); err != nil {
		return fmt.Errorf("the agent cannot be started: %w", err)
	}
	if c.Command {
		attend(c)
	}
	return become(c)
}

// kernelFiles mounts what the kernel has to say.
func kernelFiles() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		_ = os.MkdirAll(m[1], 0o755)
		if err := unix.Mount(m[0], m[1], m[0], unix.MS_NOSUID|unix.MS_NOEXEC, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	return nil
}

// loadModules loads what the initramfs holds, in the order it says, and frees
// the memory.
func loadModules() error {
	for name := range strings.FieldsSeq(read(modules + "/order")) {
		f, err := os.Open(filepath.Join(modules, name))
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
	}
	return os.RemoveAll(modules)
}

// overlayOptions are those of the guest's root that the host's side of a guest
// without a kernel of its own uses too: nothing in the layer means anything to
// this mount alone. Below the image there may be the kernel's modules.
func overlayOptions(c agent.Config) string {
	lower := basePlace
	if c.Modules != "" {
		lower += ":" + modulesPlace
	}
	return "lowerdir=" + lower + ",upperdir=" + volumePlace + "/upper,workdir=" + volumePlace + "/work,index=off,metacopy=off,redirect_dir=off"
}

// uuidOption keeps the layer free of what tells one mount from another, by the
// word that a kernel of this release has for it.
func uuidOption(release string) string {
	f := strings.FieldsFunc(release, func(r rune) bool { return r < '0' || r > '9' })
	if len(f) < 2 {
		return ""
	}
	switch version := number(f[0])*1000 + number(f[1]); {
	case version >= 6006:
		return ",uuid=null"
	case version >= 5013:
		return ",uuid=off"
	}
	return ""
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// makeRoot lays the writable layer over the image, and returns a folder of the
// layer's file system.
func makeRoot(c agent.Config) (*os.File, error) {
	for _, dir := range []string{basePlace, volumePlace, rootPlace, modulesPlace} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	for _, d := range []struct {
		name, device, place, kind string
		flags                     uintptr
	}{
		{"the image", c.Base, basePlace, "erofs", unix.MS_RDONLY},
		{"the kernel's modules", c.Modules, modulesPlace, "erofs", unix.MS_RDONLY},
		{"the writable layer", c.Volume, volumePlace, "ext4", unix.MS_NOATIME},
	} {
		if d.device == "" && d.place == modulesPlace {
			continue
		}
		path, err := device(d.device)
		if err != nil {
			return nil, err
		}
		if err := unix.Mount(path, d.place, d.kind, d.flags, ""); err != nil {
			return nil, fmt.Errorf("%s on %s cannot be mounted as %s: %w", d.name, path, d.kind, err)
		}
	}
	for _, dir := range []string{"/upper", "/work"} {
		if err := os.Mkdir(volumePlace+dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("the writable layer: %w", err)
		}
	}
	volume, err := os.Open(volumePlace)
	if err != nil {
		return nil, err
	}
	if err := unix.Mount("overlay", rootPlace, "overlay", unix.MS_NOATIME, overlayOptions(c)+uuidOption(kernelRelease())); err != nil {
		return nil, fmt.Errorf("the image and the writable layer cannot be put together: %w", err)
	}
	return volume, nil
}

// stay is how paths inside the guest's root are resolved: nothing there leads
// anywhere else.
const stay = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS

// changeRoot makes the guest's root everybody's, with the file systems that a
// guest expects.
func changeRoot(c agent.Config) error {
	root, err := os.Open(rootPlace)
	if err != nil {
		return err
	}
	defer root.Close()
	run, err := place(root, "run")
	if err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	Personal(root, c)
	more()
	for _, dir := range []string{"dev", "sys", "proc"} { // the last one is what the others are found by
		to, err := place(root, dir)
		if err != nil {
			return err
		}
		if err := unix.Mount("/"+dir, to, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move /%s: %w", dir, err)
		}
	}
	if err := unix.Fchdir(int(root.Fd())); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("change the root: %w", err)
	}
	return errors.Join(unix.Chroot("."), unix.Chdir("/"))
}

// place is a folder of the guest to mount on, by a name that nothing in the
// guest has a say in.
func place(root *os.File, dir string) (string, error) {
	_ = unix.Mkdirat(int(root.Fd()), dir, 0o755)
	fd, err := unix.Openat2(int(root.Fd()), dir, &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: stay})
	if err != nil {
		return "", fmt.Errorf("/%s of the guest: %w", dir, err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), nil // stays open until the init is executed
}

// more mounts what an init mounts itself if it knows how, and others lack.
func more() {
	for _, m := range []struct {
		kind, path, options string
		mode                os.FileMode
		flags               uintptr
	}{
		{"devpts", "/dev/pts", "ptmxmode=666,mode=620,gid=5", 0o755, unix.MS_NOSUID | unix.MS_NOEXEC},
		{"tmpfs", "/dev/shm", "mode=1777", 0o1777, unix.MS_NOSUID | unix.MS_NODEV},
		{"mqueue", "/dev/mqueue", "", 0o755, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"cgroup2", "/sys/fs/cgroup", "nsdelegate", 0o755, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	} {
		_ = os.Mkdir(m.path, m.mode)
		_ = unix.Mount(m.kind, m.path, m.kind, m.flags, m.options) // not every kernel has each
	}
	for link, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"} {
		_ = os.Symlink(target, "/dev/"+link)
	}
	// devtmpfs has a terminal multiplexer of its own; the guest's is that of its devpts.
	_ = os.Chmod("/dev/pts/ptmx", 0o666)
}

// notifySocket is where an init says that it is up.
const notifySocket = "@lodge-agent-notify"

// startAgent starts the second life of this program, from where no guest can
// change it. The pipe's other end stays with process 1 until it executes the
// guest's init.
func startAgent(program, config, volume *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	socket := os.NewFile(uintptr(fd), "notify")
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: notifySocket}); err != nil {
		return err
	}
	born, bearing, err := os.Pipe()
	if err != nil {
		return err
	}
	keep = append(keep, bearing)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// Not "self": in the child that number means another file.
	_, err = os.StartProcess("/proc/1/fd/"+strconv.Itoa(int(program.Fd())), []string{Name}, &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + searchPath, "HOME=/root"},
		Files: []*os.File{null, null, os.Stderr, config, volume, socket, born},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	return err
}

// keep holds what must stay open until process 1 becomes another program.
var keep []io.Closer

// become executes the guest's init.
func become(c agent.Config) error {
	env := base(c)
	for _, file := range candidates(c.Init[0], searchPath, "/") {
		if _, err := os.Stat(file); err != nil {
			continue
		}
		if target, err := filepath.EvalSymlinks(file); err == nil && filepath.Base(target) == "systemd" {
			env["NOTIFY_SOCKET"] = notifySocket
		}
		err := unix.Exec(file, c.Init, pairs(env))
		return fmt.Errorf("the guest's init %s cannot be run: %w", file, err)
	}
	return fmt.Errorf("the guest's init %s: not found in guest", c.Init[0])
}

// attend is process 1 of a guest that is there for one program: it runs it,
// reaps what is orphaned, and powers off when the program ends. It never
// returns.
func attend(c agent.Config) {
	signals := make(chan os.Signal, 8)
	notifySignals(signals)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF) // the host's three keys are a signal too
	how := unix.LINUX_REBOOT_CMD_POWER_OFF
	status, err := 127, error(nil)
	first, err := run(c.Init, base(c)["PATH"], &syscall.ProcAttr{Dir: "/", Env: pairs(base(c)), Files: []uintptr{0, 1, 2},
		Sys: &syscall.SysProcAttr{Setsid: true, Setctty: true}})
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOTTY) { // the console is no terminal
		first, err = run(c.Init, base(c)["PATH"], &syscall.ProcAttr{Dir: "/", Env: pairs(base(c)), Files: []uintptr{0, 1, 2},
			Sys: &syscall.SysProcAttr{Setsid: true}})
	}
	if err != nil {
		say("%v", failure(agent.Exec{Argv: c.Init}, err))
	} else {
		ended := make(chan int)
		go reap(first, ended)
		status = -1
		for status < 0 {
			select {
			case s := <-signals:
				if s == unix.SIGUSR1 {
					how = unix.LINUX_REBOOT_CMD_RESTART
				}
				_ = unix.Kill(first, unix.SIGTERM)
			case status = <-ended:
			}
		}
	}
	say("the first program ended with status %d", status)
	_ = unix.Kill(-1, unix.SIGTERM)
	powerOff(how)
}

// reap waits for all children and tells how the one that matters ended.
func reap(first int, ended chan<- int) {
	for {
		var w syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &w, 0, nil)
		if err == nil && pid == first && (w.Exited() || w.Signaled()) {
			ended <- int(exitStatus(w))
		}
		if err != nil && !slices.Contains([]error{unix.EINTR, unix.ECHILD}, err) {
			return
		}
		if err == unix.ECHILD {
			time.Sleep(time.Second)
		}
	}
}
