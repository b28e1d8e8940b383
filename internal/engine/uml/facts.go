package uml

import (
	"context"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"lodge/internal/base/cgroup"
	"lodge/internal/base/ids"
	"lodge/internal/engine"
	"lodge/internal/launch"
)

// fact is what a kernel turned out to be on this host when it was tried.
type fact struct {
	version string
	seccomp bool
	smp     bool
	missing string
	hint    string
}

// facts are found out once for each kernel.
type facts struct {
	mu    sync.Mutex
	known map[string]*sync.Once
	of    map[string]fact
}

// about returns what is known of a kernel, and tries it first if it is new.
func (f *facts) about(ctx context.Context, e *Engine, k engine.Kernel) fact {
	f.mu.Lock()
	once := f.known[k.Path]
	if once == nil {
		once = &sync.Once{}
		f.known[k.Path] = once
	}
	f.mu.Unlock()
	once.Do(func() {
		found := e.try(context.WithoutCancel(ctx), k)
		f.mu.Lock()
		f.of[k.Path] = found
		f.mu.Unlock()
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.of[k.Path]
}

// list is what a person may want to know of it.
func (f fact) list(k engine.Kernel) []engine.Fact {
	mode := "ptrace: a tracer stops each program of a guest at each system call"
	if f.seccomp {
		mode = "seccomp: fast; the jail keeps guests apart, but a program inside one can get at its guest's own kernel"
	}
	processors := "one for each guest: this kernel was built without CONFIG_SMP (lodge kernel build um/lodge makes one with it)"
	if f.smp {
		processors = "as many as a guest is given"
	}
	return []engine.Fact{{Name: "kernel", Value: strings.TrimSpace(k.Name + " " + f.version)}, {Name: "mode", Value: mode}, {Name: "processors", Value: processors},
		{Name: "memory", Value: "less while a guest runs, and back up to what it was started with: its kernel learns of memory only as it boots"},
		{Name: "without", Value: "RAID 6 inside guests"}}
}

// tryTime is how long a kernel may take to find out that it has no disk.
const tryTime = 20 * time.Second

// try runs the kernel as guests run it, with nothing to boot, and reads what it
// says.
func (e *Engine) try(ctx context.Context, k engine.Kernel) fact {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	broken := func(err error) fact {
		e.o.Log.Warn("a kernel does not run", "kernel", k.Path, "err", err)
		return fact{version: k.Version, missing: "its kernel " + k.Name + " does not run on this host: " + err.Error(), hint: "lodge kernel rm " + k.Name + ", or build another: lodge kernel ls"}
	}
	settings, err := e.shortly(ctx, k, "--showconfig")
	if err != nil {
		return broken(err)
	}
	said, err := e.shortly(ctx, k, "mem=64M", "seccomp=auto", "con=null", "con0=null,fd:1", "ssl=null", "panic=-1", "noreboot")
	if err != nil {
		return broken(err)
	}
	f := read(settings, said)
	if f.version == "" {
		f.version = k.Version
	}
	if !strings.Contains(said, panicNoRoot) {
		f.missing, f.hint = "its kernel "+k.Name+" does not boot on this host: "+lastLine(said), "lodge debug, or another kernel: lodge kernel ls"
	}
	return f
}

// panicNoRoot is how every kernel ends that has no disk.
const panicNoRoot = "Unable to mount root fs"

// read is pure: what a kernel is whose configuration this is and that said that
// when it was tried.
func read(settings, said string) fact {
	f := fact{smp: strings.Contains(settings, "\nCONFIG_SMP=y")}
	// It says "OK" of what it can use, and asks only where it wants to.
	f.seccomp = strings.Contains(said, "that seccomp filters can be installed...OK")
	if _, after, ok := strings.Cut(said, "Linux version "); ok {
		f.version, _, _ = strings.Cut(after, " ")
	}
	return f
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// nobody is the user that a kernel is tried as.
const nobody = 65534

// saidMax bounds what a kernel may say while it is tried.
const saidMax = 1 << 20

// shortly runs the kernel in a jail and a control group that go with it, and
// returns what it wrote.
func (e *Engine) shortly(ctx context.Context, k engine.Kernel, args ...string) (string, error) {
	group := "try-" + ids.New()
	if err := e.o.Tree.Create(group, cgroup.Limits{Memory: 256 << 20, Processes: 64}); err != nil {
		return "", err
	}
	defer func() {
		if err := e.o.Tree.Remove(context.WithoutCancel(ctx), group); err != nil {
			e.o.Log.Warn("a control group is left", "group", group, "err", err)
		}
	}()
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer read.Close()
	said := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(io.LimitReader(read, saidMax))
		said <- string(b)
	}()
	filter, err := e.filter()
	if err != nil {
		return "", err
	}
	j := launch.Jail{Launch: e.o.Launch, Join: e.o.Tree.Join(group), UID: nobody, Argv: append([]string{kernelAt, "umid=" + umid, "uml_dir=/tmp/"}, args...),
		Env: []string{"TMPDIR=/tmp"}, Binds: programOf(k), Tmp: 128 << 20, Proc: true, Devices: []string{"null"}, Filter: filter}
	err = j.Run(ctx, write)
	write.Close()
	return <-said, err
}
