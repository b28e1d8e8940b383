// Package zram gives the host swap space that is compressed memory: pages that
// nobody uses for a while take a third to a half of their room, and come back in
// microseconds.
//
// A host has one swap space for all its processes, so all daemons of a host
// share one device. It is known by its label and goes with the last of them.
package zram

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
)

const (
	control = "/sys/class/zram-control" // makes and removes devices
	swaps   = "/proc/swaps"
	label   = "lodge"
	// priority is above what the kernel gives swap space for which nobody asks
	// for one (negative) and what zram-generator gives its own (100).
	priority = 200
	// preferPriority is SWAP_FLAG_PREFER of linux/swap.h: the low bits are one.
	preferPriority = 0x8000
	// labelAt is where the label of swap space is: after the boot block, three
	// numbers and the UUID (union swap_header of linux/swap.h).
	labelAt, labelSize = 1024 + 3*4 + 16, 16
)

// Swap is compressed swap space that is there as long as it is held. A nil Swap
// is none.
type Swap struct {
	device string
	hold   *os.File // nil: it is somebody else's
}

// Open returns the host's compressed swap space, after making it for size bytes
// of pages if there is none. Close must be called. It is errs.Unsupported where
// the kernel has none or does not let us.
func Open(size uint64) (*Swap, error) {
	lock, err := lockAll()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if s, err := find(); s != nil || err != nil {
		return s, err
	}
	device, err := create(label, size)
	if err != nil {
		return nil, unsupported("compressed swap space cannot be made: "+err.Error(), "", err)
	}
	return hold(device)
}

// Find returns the host's compressed swap space if there is some, or nil. Close
// must be called.
func Find() (*Swap, error) {
	if _, err := os.Stat(control); err != nil {
		return nil, nil
	}
	lock, err := lockAll()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	return find()
}

func find() (*Swap, error) {
	all, err := areas()
	if err != nil {
		return nil, err
	}
	for _, a := range all {
		switch {
		case !a.compressed():
		case a.labelled(label):
			return hold(a.device)
		default:
			return &Swap{device: a.device}, nil
		}
	}
	return nil, nil
}

func hold(device string) (*Swap, error) {
	f, err := locked(device, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return &Swap{device, f}, nil
}

func unsupported(msg, hint string, err error) error {
	return &errs.Error{Op: "zram", Kind: errs.Unsupported, Msg: msg, Hint: hint, Err: err}
}

// lockAll keeps other daemons from making or removing a device meanwhile.
func lockAll() (*os.File, error) {
	f, err := os.Open(control)
	if errors.Is(err, fs.ErrNotExist) {
		// Without it the next attempt says what is missing.
		_ = exec.Command("modprobe", "zram", "num_devices=0").Run()
		f, err = os.Open(control)
	}
	if err != nil {
		return nil, unsupported("the kernel cannot compress memory", "modprobe zram", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// locked opens a device with a lock that says how it is used.
func locked(device string, how int) (*os.File, error) {
	f, err := os.Open(device)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// create makes a device for size bytes, and the host's swap space of it.
func create(label string, size uint64) (string, error) {
	text, err := os.ReadFile(filepath.Join(control, "hot_add"))
	if err != nil {
		return "", err
	}
	device := "/dev/zram" + strings.TrimSpace(string(text))
	if err := use(device, label, size); err != nil {
		return "", errors.Join(err, remove(device))
	}
	return device, nil
}

// use makes swap space of a new device.
func use(device, label string, size uint64) error {
	// Best first; the kernel's own choice where it has none of them.
	for _, algorithm := range []string{"zstd", "lzo-rle"} {
		if os.WriteFile(attribute(device, "comp_algorithm"), []byte(algorithm), 0) == nil {
			break
		}
	}
	if err := os.WriteFile(attribute(device, "disksize"), []byte(strconv.FormatUint(size, 10)), 0); err != nil {
		return err
	}
	if out, err := exec.Command("mkswap", "-L", label, device).CombinedOutput(); err != nil {
		return fmt.Errorf("mkswap: %w: %s", err, strings.TrimSpace(string(out)))
	}
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(path)), preferPriority|priority, 0); errno != 0 {
		return fmt.Errorf("swapon %s: %w", device, errno)
	}
	return nil
}

func attribute(device, name string) string {
	return filepath.Join("/sys/block", filepath.Base(device), name)
}

// Close lets go of the swap space, which stays.
func (s *Swap) Close() error {
	if s == nil || s.hold == nil {
		return nil
	}
	return s.hold.Close()
}

// Takes reports whether pages that are swapped out now are compressed, not
// written to a disk: it is the space that the kernel fills first.
func (s *Swap) Takes() bool {
	if s == nil {
		return false
	}
	all, err := areas()
	first, ok := foremost(all)
	return err == nil && ok && first.device == s.device && first.used < first.size
}

// Usage is what compressed swap space holds, in bytes.
type Usage struct {
	Device string
	Size   uint64 // of pages that it can hold
	Pages  uint64 // that it holds
	Memory uint64 // that they take, with what the allocator wastes
}

// Usage tells what the space holds. It is zero for none.
func (s *Swap) Usage() (Usage, error) {
	if s == nil {
		return Usage{}, nil
	}
	u := Usage{Device: s.device}
	size, err := os.ReadFile(attribute(s.device, "disksize"))
	if err != nil {
		return u, err
	}
	if u.Size, err = strconv.ParseUint(strings.TrimSpace(string(size)), 10, 64); err != nil {
		return u, err
	}
	stat, err := os.ReadFile(attribute(s.device, "mm_stat"))
	if err != nil {
		return u, err
	}
	u.Pages, u.Memory, err = parseStat(string(stat))
	return u, err
}

// parseStat reads mm_stat (Documentation/admin-guide/blockdev/zram.rst): the
// first figure is the pages, the third the memory that they take.
func parseStat(text string) (pages, takes uint64, err error) {
	var compressed uint64
	_, err = fmt.Sscan(text, &pages, &compressed, &takes)
	return pages, takes, err
}

// Compact gives back what the allocator wastes after pages have come and gone.
// The kernel does it by itself only when memory is short.
func (s *Swap) Compact() error {
	if s == nil {
		return nil
	}
	return os.WriteFile(attribute(s.device, "compact"), []byte("1"), 0)
}

// Remove takes away the space that Open made, unless another daemon holds it.
// What it held is read back into memory first.
func Remove() error { return removeLabelled(label) }

func removeLabelled(label string) error {
	if _, err := os.Stat(control); err != nil {
		return nil
	}
	lock, err := lockAll()
	if err != nil {
		return err
	}
	defer lock.Close()
	all, err := areas()
	if err != nil {
		return err
	}
	for _, a := range all {
		if !a.compressed() || !a.labelled(label) {
			continue
		}
		hold, err := locked(a.device, unix.LOCK_EX)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		if err != nil {
			return err
		}
		err = off(a.device)
		hold.Close() // a device that is open is not removed
		if err != nil {
			return err
		}
		return remove(a.device)
	}
	return nil
}

func off(device string) error {
	path, err := unix.BytePtrFromString(device)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(path)), 0, 0); errno != 0 {
		return fmt.Errorf("swapoff %s: %w", device, errno)
	}
	return nil
}

// openedFor is how long whoever looks at new and changed devices may have one
// open: udev does.
const openedFor = 3 * time.Second

// remove takes away a device that is no swap space any more.
func remove(device string) error {
	number := strings.TrimPrefix(filepath.Base(device), "zram")
	for end := time.Now().Add(openedFor); ; time.Sleep(20 * time.Millisecond) {
		err := os.WriteFile(filepath.Join(control, "hot_remove"), []byte(number), 0)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}
