package inside

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

// rndAddEntropy and rndReseed are requests of linux/random.h.
const (
	rndAddEntropy = 0x40085203
	rndReseed     = 0x5207
)

// seedMax is how much randomness is taken at once.
const seedMax = 512

// renew makes the guest, which may be a copy of another that ran, the one of c.
func (a *Agent) renew(r agent.Request) error {
	if r.Config == nil || r.Config.ID == "" {
		return errs.Bad("config", "is missing", "")
	}
	c := *r.Config
	old := a.Config()
	// What the line is does not change under who uses it.
	c.Base, c.Modules, c.Volume = old.Base, old.Modules, old.Volume
	c.Channel, c.Credit, c.Mailbox = old.Channel, old.Credit, old.Mailbox
	c.Init, c.Command, c.Alike = old.Init, old.Command, old.Alike
	if err := seed(r.Entropy); err != nil {
		return err
	}
	if err := setClock(r.Time); err != nil {
		return err
	}
	if err := renumber(old.NICs, c.NICs); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("host name %q: %w", c.Hostname, err)
	}
	if c.Hostname != old.Hostname {
		time.AfterFunc(laterTime, freshPrompts)
	}
	root, err := os.Open("/")
	if err != nil {
		return err
	}
	defer root.Close()
	Personal(root, c)
	if c.ID != old.ID {
		t := tree{root}
		// Where it is no link to the other, it says the same.
		t.put("var/lib/dbus/machine-id", line(c.Machine), 0)
		freshKeys()
	}
	a.mu.Lock()
	a.config = c
	a.mu.Unlock()
	time.AfterFunc(settle, a.LookUp)
	return nil
}

// seed mixes what the digits stand for into the kernel's randomness and makes
// it count at once.
func seed(digits string) error {
	if digits == "" {
		return nil
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) > seedMax {
		return errs.Bad("entropy", "makes no sense", "")
	}
	f, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	pool := make([]byte, 8, 8+len(b)) // struct rand_pool_info
	le.PutUint32(pool, uint32(8*len(b)))
	le.PutUint32(pool[4:], uint32(len(b)))
	pool = append(pool, b...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return fmt.Errorf("randomness: %w", errno)
	}
	if err := ioctl(f, rndReseed); err != nil {
		return fmt.Errorf("randomness: %w", err)
	}
	return nil
}

// setClock sets the clock to nanoseconds since 1970; 0 leaves it.
func setClock(t int64) error {
	if t <= 0 {
		return nil
	}
	ts := unix.NsecToTimespec(t)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("the clock cannot be set: %w", err)
	}
	return nil
}

// laterTime is when what nobody waits for is done who has just had a guest made:
// prompts at terminals, and keys.
const laterTime = 2 * time.Second

// freshPrompts ends the programs that wait at terminals for somebody to log in,
// and show the old host name meanwhile. Whoever started them starts them anew.
func freshPrompts() {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if strings.TrimSpace(read(name)) != "agetty" {
			continue
		}
		if pid := int(number(filepath.Base(filepath.Dir(name)))); pid > 1 {
			_ = unix.Kill(pid, unix.SIGTERM)
		}
	}
}

// keyTime is how long making a new key may take.
const keyTime = time.Minute

const hostKeys = "/etc/ssh/ssh_host_"

// freshKeys replaces the keys that a secure shell's server shows, which were
// another guest's, by new ones of the same kinds. Making them takes time that
// the guest's owner need not wait for; until then the server has none.
func freshKeys() {
	old, _ := filepath.Glob(hostKeys + "*")
	kinds := keyKinds(old)
	for _, f := range old {
		_ = os.Remove(f)
	}
	if len(kinds) == 0 {
		return
	}
	time.AfterFunc(laterTime, func() {
		for _, file := range candidates("ssh-keygen", searchPath, "/") {
			if _, err := os.Stat(file); err != nil {
				continue
			}
			for _, kind := range kinds {
				makeKey(file, kind)
			}
			hangUpServers()
			return
		}
	})
}

// keyKinds are the kinds of the secret keys among the files of a server's keys.
func keyKinds(files []string) (kinds []string) {
	for _, f := range files {
		kind, secret := strings.CutSuffix(strings.TrimPrefix(f, hostKeys), "_key")
		if secret && len(kind) < 16 && !strings.ContainsFunc(kind, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// makeKey has ssh-keygen make a key, behind everything else that the guest does.
func makeKey(program, kind string) {
	p, err := spawn(program, "-q", "-t", kind, "-N", "", "-f", hostKeys+kind+"_key")
	if err != nil {
		return
	}
	_ = unix.Setpriority(unix.PRIO_PROCESS, p.Pid, 19)
	t := time.AfterFunc(keyTime, func() { _ = p.Kill() })
	_, _ = p.Wait()
	t.Stop()
}

// spawn starts a program of the guest's that has nothing to say.
func spawn(file string, args ...string) (*os.Process, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p, err := os.StartProcess(file, append([]string{file}, args...), &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + searchPath, "HOME=/root"}, Files: []*os.File{null, null, null},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err == nil {
		forgive(p.Pid)
	}
	return p, err
}

// hangUpServers makes a secure shell's server, if one runs, read its keys anew.
func hangUpServers() {
	for _, pidFile := range []string{"/run/sshd.pid", "/var/run/sshd.pid"} {
		if pid := int(number(strings.TrimSpace(read(pidFile)))); pid > 1 {
			_ = unix.Kill(pid, unix.SIGHUP)
			return
		}
	}
}
