// Package doctor looks at the host the way an experienced administrator would
// before trusting it with a thousand guests: kernel features, control groups,
// limits, firewall, disk, clock, KVM, tools. For every fault it names the cause
// and the command that cures it, and it cures the limits itself when asked.
//
// Looking is apart from judging: a look returns plain data, a judge is a pure
// function of it.
package doctor

import (
	"cmp"
	"context"
	"sync"
)

// State is how bad a finding is.
type State string

// The states: a warning costs something, a fault makes something impossible.
const (
	OK      State = "ok"
	Warning State = "warning"
	Fault   State = "fault"
)

// Check is one finding.
type Check struct {
	Name   string
	Group  string // "kernel", "cgroups", "limits", "firewall", "host", "kvm", "tools", "guests"
	State  State
	Found  string // what was seen
	Cause  string // what follows from it; empty when State is OK
	Fix    string // the command that cures it; empty when there is none
	Fixed  bool   // it was cured just now
	Before string // the value before the cure
}

// Options say where to look and whether to cure.
type Options struct {
	DataDir string // required: disk space is measured here, old values of limits are kept here
	Fix     bool   // raise limits that are too low
	// KVMProbe is a command that calls kvmprobe.Run in a process of its own,
	// since a broken KVM hangs its caller. Empty: /dev/kvm is opened but not tried.
	KVMProbe []string
	// Kernels is what guests with a kernel of their own boot, a line for each
	// model.
	Kernels []Kernels
	// Compression is what whoever runs the doctor does of it.
	Compression Compression
	// Bridges are the host's interfaces of Lodge's networks; the firewall
	// must let them through. Empty: everything that starts with "lg".
	Bridges []string
}

// verdict is what a judge says; the name and group come from the check.
type verdict struct {
	state  State
	found  string
	cause  string
	fix    string
	fixed  bool
	before string
}

func good(found string) verdict { return verdict{state: OK, found: found} }

// check is one thing to look at. look does the I/O and judges what it saw with
// a pure function beside it.
type check struct {
	name  string
	group string
	look  func(ctx context.Context, o Options) verdict
}

// Run looks at everything and returns the findings in a fixed order. It takes
// about as long as the KVM probe (up to a second), the rest some tens of
// milliseconds. It changes limits only when o.Fix is set.
func Run(ctx context.Context, o Options) []Check {
	checks := append(append(all(), compressionCheck(o)), bootChecks(o)...)
	found := make([][]Check, len(checks)+1)
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() {
			v := c.look(ctx, o)
			found[i] = []Check{{
				Name: c.name, Group: c.group, State: cmp.Or(v.state, OK), Found: v.found,
				Cause: v.cause, Fix: v.fix, Fixed: v.fixed, Before: v.before,
			}}
		})
	}
	wg.Go(func() { found[len(checks)] = runLimits(o) })
	wg.Wait()
	var out []Check
	for _, f := range found {
		out = append(out, f...)
	}
	return out
}

func all() []check {
	var out []check
	for _, group := range [][]check{kernelChecks(), cgroupChecks(), firewallChecks(), hostChecks(), kvmChecks(), toolChecks()} {
		out = append(out, group...)
	}
	return out
}
