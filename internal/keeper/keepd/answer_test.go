package keepd

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/internal/keeper"
)

func TestShow(t *testing.T) {
	const none = ^uint64(0)
	for _, c := range []struct {
		used, limit, avail      uint64 // the last in blocks, of the whole file system
		shown                   bool
		blocks, free, available uint64
	}{
		{used: 0, limit: 4096 * 10, avail: 100, shown: true, blocks: 10, free: 10, available: 10},
		{used: 4097, limit: 4096 * 10, avail: 100, shown: true, blocks: 10, free: 8, available: 8},
		{used: 4096, limit: 4096 * 10, avail: 3, shown: true, blocks: 10, free: 9, available: 3},
		{used: 4096 * 11, limit: 4096 * 10, avail: 100, shown: true, blocks: 10},
		{used: none, limit: 1 << 62, avail: none, shown: true, blocks: 1 << 50},
		{used: 1, limit: 0, avail: 100},
		{used: 1, limit: none, avail: 100},
	} {
		s := unix.Statfs_t{Bsize: 4096, Blocks: 1000, Bfree: c.avail, Bavail: c.avail, Files: 7}
		was := s
		if shown := show(&s, c.used, c.limit); shown != c.shown {
			t.Errorf("%+v: shown %v", c, shown)
		} else if !shown && s != was {
			t.Errorf("%+v: changed without need", c)
		} else if shown && (s.Blocks != c.blocks || s.Bfree != c.free || s.Bavail != c.available || s.Files != 7) {
			t.Errorf("%+v: %+v", c, s)
		}
	}
	if show(&unix.Statfs_t{}, 1, 2) {
		t.Error("a file system without blocks is shown")
	}
}

func TestGauge(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ten, five, most, bad := file("ten", "10\n"), file("five", "5"), file("most", "18446744073709551615\n"), file("bad", "ten")
	if used, limit, err := gauge(&keeper.Quota{Used: []string{ten, five}, Limit: most}); err != nil || used != 15 || limit != ^uint64(0) {
		t.Errorf("%d of %d, %v", used, limit, err)
	}
	for _, q := range []keeper.Quota{{Limit: bad}, {Used: []string{bad}, Limit: ten}, {Used: []string{ten, most}, Limit: ten}, {Limit: dir + "/none"}} {
		if used, limit, err := gauge(&q); err == nil {
			t.Errorf("%+v: %d of %d", q, used, limit)
		}
	}
}

// FuzzPath reads paths out of memory of any content that ends anywhere.
func FuzzPath(f *testing.F) {
	f.Add([]byte("/\x00"), uint64(4096), 1)
	f.Add([]byte("a/b\x00rest"), uint64(1), 2)
	f.Add(bytes.Repeat([]byte("x"), 5000), uint64(4000), 4096)
	f.Add(append(bytes.Repeat([]byte("x"), 300), 0), uint64(10), 256)
	f.Add([]byte{0}, ^uint64(0), 1)
	f.Fuzz(func(t *testing.T, memory []byte, address uint64, step int) {
		if step <= 0 {
			t.Skip()
		}
		read := 0
		path, err := readPath(func(b []byte, at uint64) (int, error) {
			if at < address || at-address >= uint64(len(memory)) {
				return 0, unix.EIO
			}
			n := copy(b[:min(len(b), step)], memory[at-address:])
			read += n
			return n, nil
		}, address)
		if read > unix.PathMax {
			t.Fatalf("%d bytes were read", read)
		}
		if err != nil {
			return
		}
		if path == "" || strings.Contains(path, "\x00") || !bytes.HasPrefix(memory, append([]byte(path), 0)) {
			t.Fatalf("%q of %q", path, memory)
		}
	})
}

func FuzzCredentials(f *testing.F) {
	f.Add("Name:\tsh\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000004\n")
	f.Add("Name:\tUid:\t0\t0\t0\t0\nGroups:\t\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCredentials(text)
		if err == nil && (!strings.Contains(text, "Uid:") || !strings.Contains(text, "CapEff:")) {
			t.Fatalf("%q is %+v", text, c)
		}
	})
}

func TestCredentials(t *testing.T) {
	c, err := parseCredentials("Name:\tsh\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t9 10 \nCapEff:\t0000000000000004\n")
	if err != nil || c.uid != 4 || c.gid != 8 || !slices.Equal(c.groups, []uint32{9, 10}) || !c.searches {
		t.Errorf("%+v, %v", c, err)
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root")
	}
	dir := t.TempDir()
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stat := func() (err error) {
		_, err = os.Stat(filepath.Join(dir, "x"))
		return err
	}
	c = credentials{uid: 12345, gid: 12345}
	var seen, ours error
	c.act(false, func() { seen = stat() })
	if ours = stat(); !errors.Is(seen, unix.EACCES) || !errors.Is(ours, unix.ENOENT) {
		t.Errorf("another user sees %v, then we see %v", seen, ours)
	}
	c.act(true, func() { seen = stat() })
	if !errors.Is(seen, unix.ENOENT) {
		t.Errorf("the privileged see %v", seen)
	}
}
