package cluster

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/store"
)

type spec struct {
	N int `json:"n"`
}

type status struct{}

// childDir is where the test binary serves from when it is its own child.
const childDir = "LODGE_TEST_CLUSTER_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		if err := child(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child writes records for ever and says which ones it was told are safe.
func child(dir string) error {
	n, err := Start(context.Background(), Options{Dir: dir, Name: "h1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	s, err := n.Store(context.Background())
	if err != nil {
		return err
	}
	t := store.NewTable[spec, status](s, "thing")
	for i := t.Len(); ; i++ {
		if _, err := t.Create(context.Background(), fmt.Sprintf("t%06d", i), spec{N: i}); err != nil {
			return err
		}
		fmt.Println("safe", i)
	}
}

func node(t *testing.T, dir string) *Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	began := time.Now()
	n, err := Start(ctx, Options{Dir: dir, Name: "h1", Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("ready after %v", time.Since(began).Round(time.Millisecond))
	return n
}

func things(t *testing.T, n *Node) (*store.Store, *store.Table[spec, status]) {
	t.Helper()
	s, err := n.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	table := store.NewTable[spec, status](s, "thing")
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return s, table
}

func closeAll(t *testing.T, s *store.Store, n *Node) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestRestartKeepsRecords(t *testing.T) {
	dir := t.TempDir()
	n := node(t, dir)
	s, table := things(t, n)
	if _, err := table.Create(t.Context(), "a", spec{N: 7}); err != nil {
		t.Fatal(err)
	}
	rev := s.Rev()
	closeAll(t, s, n)

	n = node(t, dir)
	s, table = things(t, n)
	defer closeAll(t, s, n)
	if r, err := table.Get("a"); err != nil || r.Spec.N != 7 {
		t.Fatalf("after the restart: %+v, %v", r, err)
	}
	if s.Rev() != rev {
		t.Errorf("revision %d after the restart, %d before", s.Rev(), rev)
	}
}

func TestManyInOneTransaction(t *testing.T) {
	n := node(t, t.TempDir())
	s, table := things(t, n)
	defer closeAll(t, s, n)
	tx := s.Begin()
	const many = store.MaxOps / 2 // a record and its name each
	for i := range many {
		table.CreateIn(tx, fmt.Sprintf("t%d", i), spec{N: i})
	}
	if _, err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if table.Len() != many {
		t.Fatalf("%d records, want %d", table.Len(), many)
	}
}

// start runs the test binary as a child that writes into dir, and returns what
// it says line by line.
func start(t *testing.T, dir string, attr *syscall.SysProcAttr) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(self)
	c.Env = append(os.Environ(), childDir+"="+dir)
	c.SysProcAttr = attr
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	return c, bufio.NewScanner(out)
}

func TestKilledProcessLosesNothingAcknowledged(t *testing.T) {
	dir := t.TempDir()
	last := -1
	for range 3 {
		c, lines := start(t, dir, nil)
		for said := 0; lines.Scan(); {
			if _, err := fmt.Sscanf(lines.Text(), "safe %d", &last); err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
			if said++; said == 200 {
				c.Process.Kill() // and read on: what it still said before it died counts
			}
		}
		c.Wait()
	}
	n := node(t, dir)
	s, table := things(t, n)
	defer closeAll(t, s, n)
	if last < 599 {
		t.Fatalf("the children wrote %d records only", last+1)
	}
	for i := range last + 1 {
		if r, err := table.Get(fmt.Sprintf("t%06d", i)); err != nil || r.Spec.N != i {
			t.Fatalf("of %d acknowledged records, %d is %+v, %v", last+1, i, r, err)
		}
	}
	t.Logf("%d acknowledged, %d there", last+1, table.Len())
}

func TestNeedsNoNetwork(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a network namespace")
	}
	c, lines := start(t, t.TempDir(), &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET})
	if !lines.Scan() || lines.Text() != "safe 0" {
		t.Fatalf("without any network the child says %q", lines.Text())
	}
	sockets, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", c.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(strings.TrimSpace(string(sockets)), "\n"); n != 0 {
		t.Errorf("it has %d TCP sockets:\n%s", n, sockets)
	}
}

func TestSecondProcessIsTold(t *testing.T) {
	dir := t.TempDir()
	n := node(t, dir)
	defer n.Close()
	_, lines := start(t, dir, nil)
	lines.Scan()
	if want := fmt.Sprintf("process %d holds these records already", os.Getpid()); !strings.Contains(lines.Text(), want) {
		t.Fatalf("the second process says %q, want %q in it", lines.Text(), want)
	}
	_, err := Start(t.Context(), Options{Dir: dir, Name: "h1", Log: slog.New(slog.DiscardHandler)})
	if !errs.Is(err, errs.Busy) {
		t.Fatalf("starting twice in one process: %v", err)
	}
}

func TestDamageIsTold(t *testing.T) {
	garbage := []byte(strings.Repeat("garbage!", 2048))
	for _, c := range []struct {
		name, glob string
		damage     func([]byte) []byte
		say        string
	}{
		{"record file", "member/snap/db", func([]byte) []byte { return garbage }, "invalid database"},
		{"whole log", "member/wal/*.wal", func([]byte) []byte { return garbage }, "the log does not hold"},
		{"bits of the log", "member/wal/*.wal", func(b []byte) []byte {
			at := bytes.Index(b, []byte(`"name":"a"`))
			b[at+8] ^= 1
			return b
		}, "crc mismatch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			n := node(t, dir)
			s, table := things(t, n)
			if _, err := table.Create(t.Context(), "a", spec{}); err != nil {
				t.Fatal(err)
			}
			closeAll(t, s, n)
			files, _ := filepath.Glob(filepath.Join(dir, c.glob))
			if len(files) == 0 {
				t.Fatalf("no file %s", c.glob)
			}
			content, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(files[0], c.damage(content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err = Start(t.Context(), Options{Dir: dir, Name: "h1", Log: slog.New(slog.DiscardHandler)})
			if !errs.Is(err, errs.Internal) || !strings.Contains(err.Error(), c.say) {
				t.Fatalf("with a damaged %s: %v", c.name, err)
			}
			t.Log(err)
		})
	}
}

func TestFullDiskRefusesAndRecovers(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=128m"); err != nil {
		t.Skip("no tmpfs can be mounted: ", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	n := node(t, filepath.Join(dir, "records"))
	s, table := things(t, n)
	defer closeAll(t, s, n)
	kept, err := table.Create(t.Context(), "kept", spec{})
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	fill(t, ballast)
	if _, err := table.Create(t.Context(), "more", spec{}); !errs.Is(err, errs.NoSpace) {
		t.Fatalf("creating on a full disk: %v", err)
	}
	if err := table.Delete(t.Context(), kept.ID); err != nil {
		t.Fatalf("deleting on a full disk: %v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if _, err := table.Create(t.Context(), "more", spec{}); err != nil {
		t.Fatalf("after room was made: %v", err)
	}
}

// fill writes until less than 16 MiB are free.
func fill(t *testing.T, path string) {
	t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(filepath.Dir(path), &fs); err != nil {
		t.Fatal(err)
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	if err := os.WriteFile(path, make([]byte, free-16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
}
