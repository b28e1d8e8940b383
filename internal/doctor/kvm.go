package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"lodge/internal/base/kvmprobe"
)

const (
	// kvmPatience is how long the probe may take once it has begun. A working KVM
	// is done in 10 ms.
	kvmPatience = 800 * time.Millisecond
	// startPatience is how long its process may take to begin, which is long only
	// on a slow host.
	startPatience = 5 * time.Second
)

func kvmChecks() []check {
	return []check{{"KVM", "kvm", func(ctx context.Context, o Options) verdict { return judgeKVM(lookKVM(ctx, o.KVMProbe)) }}}
}

// KVM says whether guests run on this host's KVM at the processor's own speed,
// and what was seen. probe is Options.KVMProbe; without one it was not seen.
func KVM(ctx context.Context, probe []string) (usable bool, why string) {
	v := judgeKVM(lookKVM(ctx, probe))
	return v.state == OK && len(probe) > 0, v.found
}

// kvm is what is known about /dev/kvm.
type kvm struct {
	openErr error
	cpu     bool // the processor tells that it can
	tried   bool
	steps   []kvmprobe.Step
	late    bool // the deadline came first
}

func lookKVM(ctx context.Context, probe []string) kvm {
	var k kvm
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	k.cpu = bytes.Contains(cpuinfo, []byte(" vmx")) || bytes.Contains(cpuinfo, []byte(" svm"))
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		k.openErr = err
		return k
	}
	dev.Close()
	if len(probe) == 0 {
		return k
	}
	k.tried = true
	out, late, err := runProbe(ctx, probe)
	k.late, k.steps = late, parseKVMSteps(out)
	if err != nil && !k.late && len(k.steps) == 0 {
		k.steps = []kvmprobe.Step{{Step: "start of the probe", Err: err.Error()}}
	}
	return k
}

// runProbe returns what the probe wrote, and whether it had to be ended.
func runProbe(ctx context.Context, probe []string) (out []byte, late bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, startPatience+kvmPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, probe[0], probe[1:]...)
	cmd.WaitDelay = 200 * time.Millisecond
	said := &progress{first: func() { time.AfterFunc(kvmPatience, cancel) }}
	cmd.Stdout = said
	err = cmd.Run()
	return said.text, ctx.Err() != nil, err
}

// progress keeps what is written, and calls first when something is.
type progress struct {
	text  []byte
	first func()
}

func (p *progress) Write(b []byte) (int, error) {
	if len(p.text) == 0 {
		p.first()
	}
	p.text = append(p.text, b...)
	return len(b), nil
}

func parseKVMSteps(out []byte) []kvmprobe.Step {
	var steps []kvmprobe.Step
	for d := json.NewDecoder(bytes.NewReader(out)); len(steps) < 16; {
		var s kvmprobe.Step
		if d.Decode(&s) != nil {
			break
		}
		if s.Step != kvmprobe.Begins {
			steps = append(steps, s)
		}
	}
	return steps
}

func judgeKVM(k kvm) verdict {
	const emulated = "virtual machines run emulated, some ten times slower; guests of model os are not concerned"
	switch {
	case errors.Is(k.openErr, os.ErrNotExist) && k.cpu:
		return verdict{state: Warning, found: "no /dev/kvm, though the processor could", cause: emulated, fix: "modprobe -a kvm_intel kvm_amd"}
	case errors.Is(k.openErr, os.ErrNotExist):
		return verdict{state: Warning, found: "no /dev/kvm", cause: emulated, fix: "turn on virtualization (VT-x, AMD-V) in the firmware, or nested virtualization in the hypervisor below"}
	case k.openErr != nil:
		return verdict{state: Warning, found: k.openErr.Error(), cause: emulated, fix: "chmod 0660 /dev/kvm; ls -l /dev/kvm"}
	case !k.tried:
		return verdict{state: OK, found: "/dev/kvm opens; it was not tried out"}
	}
	const below = "ask who runs the hypervisor below for real nested virtualization; nothing on this host cures it"
	var done []string
	for _, s := range k.steps {
		if s.Err != "" {
			return verdict{state: Warning, found: fmt.Sprintf("/dev/kvm opens but fails in %s: %s", s.Step, s.Err), cause: emulated, fix: below}
		}
		done = append(done, fmt.Sprintf("%s %.1f ns a turn", s.Step, s.Ns))
		if s.Ns > kvmprobe.Slow {
			return verdict{state: Warning, found: fmt.Sprintf("/dev/kvm opens, but a guest takes %.0f ns for a loop of three instructions (%s)", s.Ns, s.Step),
				cause: "it runs guests so slowly that emulation is faster", fix: below}
		}
	}
	if k.late || len(done) < 2 {
		return verdict{state: Warning, found: fmt.Sprintf("/dev/kvm opens, but a guest made no progress in %v (%s)", kvmPatience, strings.Join(append(done, "then nothing"), ", ")),
			cause: emulated, fix: below}
	}
	return good("runs guests: " + strings.Join(done, ", "))
}
