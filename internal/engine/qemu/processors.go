package qemu

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"lodge/internal/engine/qemu/qmp"
)

// baseline is a processor that many hosts can give a guest in full, so that it
// can go on on any of them: the levels that the x86-64 psABI defines.
type baseline struct {
	name string
	has  []string // beyond qemu64, by QEMU's names
}

func baselines() []baseline {
	v2 := []string{"cx16", "lahf-lm", "popcnt", "sse4.1", "sse4.2", "ssse3"}
	v3 := append(slices.Clone(v2), "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave")
	v4 := append(slices.Clone(v3), "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
	return []baseline{{"x86-64-v2", v2}, {"x86-64-v3", v3}, {"x86-64-v4", v4}}
}

// processor is what QEMU calls a processor that a person chose: a baseline has
// no name there.
func processor(chosen string) string {
	name, changes, changed := strings.Cut(chosen, ",")
	for _, b := range baselines() {
		if b.name == name {
			name = "qemu64,-svm,+" + strings.Join(b.has, ",+")
		}
	}
	if changed {
		name += "," + changes
	}
	return name
}

// byteStrings are the features by which a processor says that it moves and clears
// memory byte by byte as fast as otherwise. Kernels and C libraries then do it so,
// and where instructions are translated each byte is a turn of a loop: a page is
// cleared in a fourth of the time without.
func byteStrings() []string { return []string{"erms", "fsrm", "fzrm", "fsrs", "fsrc"} }

// translated is a processor without those of the features slow that its name
// does not say anything of.
func translated(model string, slow []string) string {
	_, changes, _ := strings.Cut(model, ",")
	named := strings.Split(changes, ",")
	for _, f := range slow {
		if !slices.Contains(named, "+"+f) && !slices.Contains(named, "-"+f) {
			model += ",-" + f
		}
	}
	return model
}

// judged is what this host can give of the processors that QEMU knows.
type judged struct {
	baselines []string
	lacking   []string // models of which it lacks something, which guests then do without
}

// judge finds out by a QEMU that runs nothing. own is the model with all that
// there is.
func judge(ctx context.Context, program, accel, own string) (j judged, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return j, err
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "monitor"), os.NewFile(uintptr(fds[1]), "monitor")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		theirs.Close()
		return j, err
	}
	// It does not end when its monitor's other end does, so it ends with this
	// daemon; which the kernel takes for the thread that started it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, program, "-machine", "none", "-accel", accel, "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	theirs.Close() // so that its end is seen
	if err != nil {
		cancel()
		conn.Close()
		return j, err
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was killed
	}()
	c, err := qmp.Open(ctx, conn.(*net.UnixConn), nil)
	if err != nil {
		return j, err
	}
	defer c.Close()
	return j, j.ask(ctx, c, own)
}

func (j *judged) ask(ctx context.Context, c *qmp.Client, own string) error {
	var models []struct {
		Name string   `json:"name"`
		Lack []string `json:"unavailable-features"`
	}
	if err := c.Do(ctx, "query-cpu-definitions", nil, &models); err != nil {
		return err
	}
	for _, m := range models {
		if len(m.Lack) > 0 {
			j.lacking = append(j.lacking, m.Name)
		}
	}
	var all struct {
		Model struct {
			Props map[string]any `json:"props"`
		} `json:"model"`
	}
	if err := c.Do(ctx, "query-cpu-model-expansion", map[string]any{"type": "full", "model": map[string]any{"name": own}}, &all); err != nil {
		return err
	}
	for _, b := range baselines() {
		if !slices.ContainsFunc(b.has, func(f string) bool { return all.Model.Props[f] != true }) {
			j.baselines = append(j.baselines, b.name)
		}
	}
	return nil
}

// ofModels keeps those of models that the host lacks something of.
func (j judged) ofModels(models []string) []string {
	return slices.DeleteFunc(slices.Clone(models), func(m string) bool { return !slices.Contains(j.lacking, m) })
}

// parseFeatures reads what "-cpu help" says that can be added to models and taken
// away.
func parseFeatures(text []byte) []string {
	_, list, _ := strings.Cut(string(text), "CPUID flags:\n")
	return strings.Fields(list)
}

// facts tells of a host's processors what a person may want to know.
func (j judged) fact(models []string) string {
	lacking := j.ofModels(models)
	if len(lacking) == 0 {
		return ""
	}
	return fmt.Sprintf("of these, guests do without what this host lacks: %s", strings.Join(lacking, ", "))
}
