// Package kvmprobe tries whether the host's KVM runs guests at the processor's own
// speed, by two tiny guests. It needs nothing that takes long to start: on a host
// whose processor is translated, a large program's start takes longer than all
// the rest.
package kvmprobe

// Argument is what a program is started with that calls Run, in a process of its
// own.
const Argument = "-kvm-probe"

// Begins is what the first Step is called: the program has started, which is not
// KVM's affair. Tiny guests follow.
const Begins = "begins"

// Step is one line of what Run writes.
type Step struct {
	Step string  `json:"step"` // "real mode", "long mode"
	Err  string  `json:"err,omitempty"`
	Ns   float64 `json:"ns,omitempty"` // per turn of the guest's loop, about a nanosecond where it runs on the processor itself
}

// Slow is how many nanoseconds a turn of the guest's loop may take where KVM is of
// use. A translated processor that has a guest of its own takes some ten, one
// whose hypervisor imitates the guest's kernel thousands.
const Slow = 300
