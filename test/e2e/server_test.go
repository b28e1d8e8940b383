package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/api"
)

// patience is how long anything may take on a busy machine before a test gives
// up. It is not a promise: those are in docs/SPECIFICATION.md.
const patience = 60 * time.Second

var servers atomic.Int64

// server is one lodged with everything of its own.
type server struct {
	t     testing.TB
	dir   string // holds data, run and the log
	flags []string
	cmd   *exec.Cmd
	ended chan struct{}
}

// binary returns a program that make has built.
func binary(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return path
}

// newServer starts a daemon and takes everything down when the test ends.
func newServer(t testing.TB, flags ...string) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("guests need root")
	}
	dir, err := os.MkdirTemp("/var/tmp", "lodge-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	n := servers.Add(1)
	s := &server{t: t, dir: dir}
	s.flags = append([]string{
		"--data-dir", s.path("data"), "--run-dir", s.path("run"), "--https", "none", "--raise-limits=false", "--pool-size", "4GiB",
		"--standby-memory", "0", // what nobody asked for is in the way of counting what somebody did
		"--cgroup", fmt.Sprintf("lodge-e2e-%s-%d", filepath.Base(dir), n), "--prefix", fmt.Sprintf("e%d", n), "--host", "testhost",
	}, flags...)
	t.Cleanup(s.cleanUp)
	s.start()
	return s
}

func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// launch starts the daemon and waits for nothing.
func (s *server) launch() {
	s.t.Helper()
	log, err := os.OpenFile(s.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	s.cmd = exec.Command(binary(s.t, "lodged"), s.flags...)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	ended := make(chan struct{})
	s.ended = ended
	go func(c *exec.Cmd) { c.Wait(); close(ended) }(s.cmd)
}

func (s *server) start() {
	s.t.Helper()
	s.launch()
	until(s.t, "lodged answers", func() error {
		select {
		case <-s.ended:
			text, _ := os.ReadFile(s.path("log"))
			s.t.Fatalf("lodged ended:\n%s", text)
		default:
		}
		if r := s.try("version"); r.code != 0 {
			return errors.New(r.err)
		}
		return nil
	})
}

// kill ends the daemon the hard way.
func (s *server) kill() {
	s.t.Helper()
	if err := s.cmd.Process.Kill(); err != nil {
		s.t.Fatal(err)
	}
	<-s.ended
}

// end asks the daemon to end.
func (s *server) end() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
		s.t.Fatal(err)
	}
	<-s.ended
}

// down is what make down does.
func (s *server) down() result {
	return run(s.t, nil, append([]string{binary(s.t, "lodged"), "down"}, s.flags...)...)
}

func (s *server) cleanUp() {
	if s.t.Failed() {
		text, _ := os.ReadFile(s.path("log"))
		s.t.Logf("the daemon's log:\n%s", lastPart(text, 8000))
	}
	if r := s.down(); r.code != 0 {
		s.t.Errorf("lodged down failed: %s%s", r.out, r.err)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		s.t.Error(err)
	}
	nothingLeft(s.t, s.dir, s.flag("--cgroup"), s.flag("--prefix"))
}

func lastPart(text []byte, n int) []byte { return text[max(0, len(text)-n):] }

// result is how a command ended.
type result struct {
	out, err string
	code     int
}

func run(t testing.TB, stdin []byte, argv ...string) result {
	t.Helper()
	return runIn(t, nil, stdin, argv...)
}

func runIn(t testing.TB, env []string, stdin []byte, argv ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var out, err bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &err
	cmd.Env = append(os.Environ(), env...)
	failure := cmd.Run()
	r := result{out: out.String(), err: err.String(), code: cmd.ProcessState.ExitCode()}
	var exit *exec.ExitError
	if failure != nil && !errors.As(failure, &exit) {
		t.Fatalf("%v: %v", argv, failure)
	}
	return r
}

// try runs the command line and returns how it ended.
func (s *server) try(args ...string) result {
	s.t.Helper()
	return s.tryWith(nil, args...)
}

func (s *server) tryWith(stdin []byte, args ...string) result {
	s.t.Helper()
	return runIn(s.t, []string{"LODGE_HOST=unix://" + s.path("run/lodged.sock")}, stdin, append([]string{binary(s.t, "lodge")}, args...)...)
}

// lodge runs the command line, which must succeed, and returns what it printed.
func (s *server) lodge(args ...string) string {
	s.t.Helper()
	r := s.try(args...)
	if r.code != 0 {
		s.t.Fatalf("lodge %s: exit status %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// fed runs the command line with something on its standard input; it must
// succeed.
func (s *server) fed(stdin string, args ...string) {
	s.t.Helper()
	if r := s.tryWith([]byte(stdin), args...); r.code != 0 {
		s.t.Fatalf("lodge %s: exit status %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
}

// refused runs the command line, which must fail with the exit status and name
// every one of words in its error.
func (s *server) refused(code int, words []string, args ...string) {
	s.t.Helper()
	r := s.try(args...)
	if r.code != code {
		s.t.Errorf("lodge %s: exit status %d, want %d\n%s%s", strings.Join(args, " "), r.code, code, r.out, r.err)
	}
	for _, w := range words {
		if !strings.Contains(r.err, w) {
			s.t.Errorf("lodge %s: the error does not name %q:\n%s", strings.Join(args, " "), w, r.err)
		}
	}
}

// guests returns what lodge ls -o json says, by name.
func (s *server) guests() map[string]api.Guest {
	s.t.Helper()
	var all []api.Guest
	if err := json.Unmarshal([]byte(s.lodge("ls", "-o", "json")), &all); err != nil {
		s.t.Fatal(err)
	}
	named := map[string]api.Guest{}
	for _, g := range all {
		named[g.Name] = g
	}
	return named
}

func (s *server) guest(name string) api.Guest {
	s.t.Helper()
	g, ok := s.guests()[name]
	if !ok {
		s.t.Fatalf("there is no guest %s", name)
	}
	return g
}

// busybox makes sure of the smallest image.
func (s *server) busybox() {
	s.t.Helper()
	s.lodge("image", "build", "busybox")
}

// keeper returns the pid of the keeper.
func (s *server) keeper() int {
	s.t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		s.t.Fatal(err)
	}
	for _, p := range procs {
		text, _ := os.ReadFile(p)
		argv := strings.Split(string(text), "\x00")
		if strings.HasSuffix(argv[0], "/lodge-keeper") && strings.Contains(string(text), s.dir) {
			pid, _ := strconv.Atoi(strings.Split(p, "/")[2])
			return pid
		}
	}
	s.t.Fatal("there is no keeper")
	return 0
}

// until waits for f to succeed.
func until(t testing.TB, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	var err error
	for time.Now().Before(deadline) {
		if err = f(); err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("%s: not within %v: %v", what, patience, err)
}

// list returns what a command prints as JSON.
func list[T any](s *server, args ...string) (all []T) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.lodge(append(args, "-o", "json")...)), &all); err != nil {
		s.t.Fatal(err)
	}
	return all
}
