package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lodge/internal/cli"
	"lodge/internal/cli/clitest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"lodge": main})
}

// TestScripts runs the real program against a false lodged; each script has its
// own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			// A socket's path is bounded to 107 bytes, shorter than a work
			// directory may be.
			dir, err := os.MkdirTemp("", "lodge")
			if err != nil {
				return err
			}
			env.Defer(func() { os.RemoveAll(dir) })
			host, server, stop, err := clitest.Start(dir)
			if err != nil {
				return err
			}
			env.Defer(stop)
			env.Setenv("LODGE_HOST", host)
			env.Setenv("HOST_OF_NOBODY", "unix://"+filepath.Join(dir, "nobody"))
			// With -race each of some hundred programs would sleep a second
			// before it ends.
			env.Setenv("GORACE", "atexit_sleep_ms=0")
			env.Values[serverKey{}] = server
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"exits":     exits,
			"release":   func(ts *testscript.TestScript, _ bool, _ []string) { falseLodged(ts).Release() },
			"cutevents": func(ts *testscript.TestScript, _ bool, _ []string) { falseLodged(ts).CutEvents(3) },
			"mode":      mode,
			"sparse":    sparse,
			"waitfor":   waitFor,
		},
	})
}

type serverKey struct{}

func falseLodged(ts *testscript.TestScript) *clitest.Server {
	return ts.Value(serverKey{}).(*clitest.Server)
}

// exits CODE PROGRAM ARGS… runs a program and checks its exit code.
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		e, ok := errors.AsType[*exec.ExitError](err)
		if !ok {
			ts.Fatalf("%v", err)
		}
		code = e.ExitCode()
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// mode FILE MODE UID:GID checks a file; owners only when we may set them.
func mode(ts *testscript.TestScript, _ bool, args []string) {
	fi, err := os.Lstat(ts.MkAbs(args[0]))
	ts.Check(err)
	if got := fmt.Sprintf("%o", fi.Mode().Perm()); got != args[1] || fi.Mode()&os.ModeSetuid != 0 {
		ts.Fatalf("%s has mode %v, want %s", args[0], fi.Mode(), args[1])
	}
	if len(args) > 2 && os.Geteuid() == 0 {
		if got := owner(fi); got != args[2] {
			ts.Fatalf("%s is owned by %s, want %s", args[0], got, args[2])
		}
	}
}

// sparse FILE SIZE checks that a file has that size and takes hardly any space.
func sparse(ts *testscript.TestScript, _ bool, args []string) {
	fi, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	if strconv.FormatInt(fi.Size(), 10) != args[1] {
		ts.Fatalf("size %d, want %s", fi.Size(), args[1])
	}
	if blocks(fi)*512 > 1<<20 {
		ts.Fatalf("%d blocks are used", blocks(fi))
	}
}

// waitFor FILE TEXT waits until the file has the text: a program in the
// background has come that far. The test's own time-out bounds it.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	for {
		b, _ := os.ReadFile(ts.MkAbs(args[0]))
		if strings.Contains(string(b), args[1]) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestEveryCommandIsDocumented walks all commands.
func TestEveryCommandIsDocumented(t *testing.T) {
	root := newRoot(&cli.Factory{Streams: cli.SystemStreams()})
	n := 0
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		for _, c := range cmd.Commands() {
			walk(c)
		}
		if slices.Contains([]string{"lodge exit-codes"}, cmd.CommandPath()) {
			return // a topic, not a command
		}
		n++
		if cmd.Short == "" || cmd.Example == "" {
			t.Errorf("%s: Short %q, Example %q", cmd.CommandPath(), cmd.Short, cmd.Example)
		}
		if strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: Short is a phrase, without a period", cmd.CommandPath())
		}
		if cmd.RunE == nil || cmd.Run != nil {
			t.Errorf("%s: commands have RunE, so that errors have one printer", cmd.CommandPath())
		}
		if cmd.Args == nil && !cmd.HasSubCommands() && cmd.ValidArgsFunction == nil {
			t.Errorf("%s: takes any arguments and completes none", cmd.CommandPath())
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s is not documented", cmd.CommandPath(), f.Name)
			}
		})
	}
	walk(root)
	if n < 70 {
		t.Errorf("only %d commands were seen", n)
	}
}

// TestInitCostsNothing fails when a package that the program links takes long
// before main: start-up time is a promise.
func TestInitCostsNothing(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Skipf("the test program cannot run itself: %v", err)
	}
	seen := 0
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) < 8 || f[0] != "init" {
			continue
		}
		seen++
		// Allocations do not depend on how busy the machine is.
		if n, err := strconv.Atoi(f[7]); err == nil && n > 256<<10 {
			t.Errorf("%s allocates %d bytes before main", f[1], n)
		}
	}
	if seen == 0 {
		t.Fatalf("no trace in %q", out)
	}
}

// BenchmarkVersion is the start of the program: build, then exec it again and
// again.
func BenchmarkVersion(b *testing.B) {
	bin := filepath.Join(b.TempDir(), "lodge")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", bin, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for b.Loop() {
		if err := exec.Command(bin, "--version").Run(); err != nil {
			b.Fatal(err)
		}
	}
}
