package inside

import (
	"encoding/hex"
	"fmt"
	"os"
	"reflect"
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

// renew makes the guest, which may be a copy of another that ran, the one of c, and
// returns the kinds of keys that the host is to make for it.
func (a *Agent) renew(r agent.Request) (kinds []string, err error) {
	if r.Config == nil || r.Config.ID == "" {
		return nil, errs.Bad("config", "is missing", "")
	}
	c := *r.Config
	old := a.Config()
	// What the line is does not change under who uses it.
	c.Base, c.Modules, c.Volume = old.Base, old.Modules, old.Volume
	c.Channel, c.Credit, c.Mailbox = old.Channel, old.Credit, old.Mailbox
	c.Init, c.Command, c.Alike = old.Init, old.Command, old.Alike
	if err := seed(r.Entropy); err != nil {
		return nil, err
	}
	if err := setClock(r.Time); err != nil {
		return nil, err
	}
	if reflect.DeepEqual(c, old) {
		return nil, nil // the very guest, at another time: all else is as it left it
	}
	if err := renumber(old.NICs, c.NICs); err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return nil, fmt.Errorf("host name %q: %w", c.Hostname, err)
	}
	if c.Hostname != old.Hostname {
		time.AfterFunc(laterTime, freshPrompts)
	}
	root, err := os.Open("/")
	if err != nil {
		return nil, err
	}
	defer root.Close()
	Personal(root, c)
	if c.ID != old.ID {
		t := tree{root}
		// Where it is no link to the other, it says the same.
		t.put("var/lib/dbus/machine-id", line(c.Machine), 0)
		kinds = a.keys.fresh(r.Served)
	}
	a.mu.Lock()
	a.config = c
	a.mu.Unlock()
	time.AfterFunc(settle, a.LookUp)
	return kinds, nil
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

// promptsFile is what agetty looks at while it waits for somebody to log in: it
// says its prompt again when the file is touched (agetty(8), --reload).
const promptsFile = "/run/agetty.reload"

// freshPrompts has the programs that wait at terminals for somebody to log in,
// and show the old host name meanwhile, show the new one.
func freshPrompts() {
	f, err := os.OpenFile(promptsFile, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_ = unix.Futimes(int(f.Fd()), nil)
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
