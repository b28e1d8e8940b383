package e2e

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// smallDisk gives the server that is made next a data directory of size bytes.
func smallDisk(t *testing.T, size string) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "lodge-small-")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("small", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("no tmpfs here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting the small disk: %v", err)
			unix.Unmount(dir, unix.MNT_DETACH)
		}
		os.Remove(dir)
	})
	return dir
}

// fill writes a file until the disk is full.
func fill(t *testing.T, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 4096; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// bigTar is a root file system with n bytes that cannot be compressed.
func bigTar(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	body := make([]byte, n)
	rand.Read(body)
	if err := w.WriteHeader(&tar.Header{Name: "big", Mode: 0o644, Size: int64(n), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	w.Write(body)
	w.Close()
	return b.Bytes()
}

// TestDiskFull fills the disk under the data directory at several moments. It
// must say so, and go on by itself once there is room.
func TestDiskFull(t *testing.T) {
	small := smallDisk(t, "320m")
	s := newServer(t, "--data-dir", small, "--pool", "dir")
	ballast := filepath.Join(small, "ballast")

	t.Cleanup(func() { os.Remove(ballast) })

	// While an image is made.
	r := s.tryWith(bigTar(t, 400<<20), "image", "import", "-", "big")
	if r.code == 0 || !strings.Contains(r.err, "hint") || !strings.Contains(r.err, "space") && !strings.Contains(r.err, "room") {
		t.Errorf("400 MiB on 320: %d %s%s", r.code, r.out, r.err)
	}
	until(t, "the disk is as empty as before", func() error {
		var st unix.Statfs_t
		if err := unix.Statfs(small, &st); err != nil {
			return err
		}
		if free := st.Bavail * uint64(st.Bsize); free < 200<<20 {
			return fmt.Errorf("%d MiB are free", free>>20)
		}
		return nil
	})
	s.busybox()
	s.lodge("launch", "busybox", "g", "--memory", "32MiB")

	// While guests are started, and records written.
	fill(t, ballast)
	var made int
	for i := range 10 {
		r := s.try("launch", "busybox", fmt.Sprintf("h%d", i), "--memory", "32MiB", "--no-wait")
		if r.code == 0 {
			made++
		} else if !strings.Contains(r.err, "free on the disk") || !strings.Contains(r.err, "hint") {
			t.Errorf("launch on a full disk: %+v", r)
		}
	}
	t.Logf("%d of 10 guests were taken in on a full disk", made)
	s.refused(1, []string{"free on the disk", "hint"}, "image", "build", "busybox", "--rebuild")
	if r := s.try("exec", "g", "--", "true"); r.code != 0 {
		t.Errorf("exec on a full disk: %+v", r)
	}
	if r := s.try("ls"); r.code != 0 {
		t.Errorf("ls on a full disk: %+v", r)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	until(t, "all that was taken in runs", func() error {
		up := 0
		for _, g := range s.guests() {
			if g.Phase != "running" {
				return fmt.Errorf("%s: %s, %+v", g.Name, g.Phase, g.Problem)
			}
			up++
		}
		if up != made+1 {
			return fmt.Errorf("%d guests", up)
		}
		return nil
	})
	s.lodge("launch", "busybox", "after", "--memory", "32MiB")

	// While the daemon is down.
	s.kill()
	fill(t, ballast)
	s.startSlowly()
	os.Remove(ballast)
	until(t, "lodged comes back", func() error {
		if r := s.try("exec", "after", "--", "true"); r.code != 0 {
			s.startSlowly()
			return errors.New(r.err)
		}
		return nil
	})
	s.lodge("rm", "-f", "--all")
	until(t, "nothing is left", func() error {
		if left := dirs(filepath.Join(small, "guests")); len(left) > 0 {
			return fmt.Errorf("%v", left)
		}
		return nil
	})
}

// startSlowly starts the daemon if it does not run, and does not care whether
// it can, as an init that restarts it would.
func (s *server) startSlowly() {
	s.t.Helper()
	select {
	case <-s.ended:
	default:
		return
	}
	s.launch()
}
