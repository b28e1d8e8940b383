package guest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Devices is what can be plugged into a guest that runs, and taken out again.
// Whoever plugs something in writes it down before as one of Coming: until it
// is no more, nobody knows whether the guest has it.
type Devices struct {
	Disks  []FurtherDisk `json:"disks,omitempty"`
	NICs   []NIC         `json:"nics,omitempty"`
	Coming []string      `json:"coming,omitempty"` // "disk NAME", "nic NAME": of those above
}

// Clone returns a copy that shares nothing with d.
func (d Devices) Clone() *Devices {
	return &Devices{Disks: slices.Clone(d.Disks), NICs: slices.Clone(d.NICs), Coming: slices.Clone(d.Coming)}
}

func comingDisk(name string) string { return "disk " + name }
func comingNIC(name string) string  { return "nic " + name }

// Expect takes in what p is about to plug in.
func (d *Devices) Expect(p Plugs) {
	for _, in := range p.InDisks {
		d.GoneDisk(in.Name)
		d.Disks, d.Coming = append(d.Disks, in), append(d.Coming, comingDisk(in.Name))
	}
	for _, in := range p.InNICs {
		d.GoneNIC(in.Name)
		d.NICs, d.Coming = append(d.NICs, in), append(d.Coming, comingNIC(in.Name))
	}
}

// CameDisk says that the guest has a disk that was expected.
func (d *Devices) CameDisk(name string) { d.know(comingDisk(name)) }

// CameNIC says that the guest has a network card that was expected.
func (d *Devices) CameNIC(name string) { d.know(comingNIC(name)) }

func (d *Devices) know(what string) {
	d.Coming = slices.DeleteFunc(d.Coming, func(c string) bool { return c == what })
}

// GoneDisk says that the guest has no disk of that name.
func (d *Devices) GoneDisk(name string) {
	d.Disks = slices.DeleteFunc(d.Disks, func(o FurtherDisk) bool { return o.Name == name })
	d.know(comingDisk(name))
}

// GoneNIC says that the guest has no network card of that name.
func (d *Devices) GoneNIC(name string) {
	d.NICs = slices.DeleteFunc(d.NICs, func(o NIC) bool { return o.Name == name })
	d.know(comingNIC(name))
}

// Devices returns what a run of s has from its start on.
func (s Spec) Devices() *Devices {
	return &Devices{Disks: slices.Clone(s.Disks), NICs: slices.Clone(s.NICs)}
}

// Plugs is what turns the devices of a run into those of a spec. What goes is
// taken out before what comes is put in.
type Plugs struct {
	OutDisks, OutNICs []string // by name
	InDisks           []FurtherDisk
	InNICs            []NIC
}

// Empty reports whether there is nothing to do.
func (p Plugs) Empty() bool {
	return len(p.OutDisks)+len(p.OutNICs)+len(p.InDisks)+len(p.InNICs) == 0
}

// Plugs returns what has to change for a run with the devices have to match s.
// A disk that was made larger, or that firmware is to try in another order, is
// not plugged anew: that shows with the next start.
func (s Spec) Plugs(have *Devices) Plugs {
	var p Plugs
	if have == nil {
		return p
	}
	sameDisk := func(a FurtherDisk) func(FurtherDisk) bool {
		return func(b FurtherDisk) bool { return a.Name == b.Name && a.Disc == b.Disc }
	}
	for _, d := range have.Disks {
		if !slices.ContainsFunc(s.Disks, sameDisk(d)) {
			p.OutDisks = append(p.OutDisks, d.Name)
		}
	}
	for _, d := range s.Disks {
		if !slices.ContainsFunc(have.Disks, sameDisk(d)) || slices.Contains(have.Coming, comingDisk(d.Name)) {
			p.InDisks = append(p.InDisks, d)
		}
	}
	for _, n := range have.NICs {
		if !slices.Contains(s.NICs, n) {
			p.OutNICs = append(p.OutNICs, n.Name)
		}
	}
	for _, n := range s.NICs {
		if !slices.Contains(have.NICs, n) || slices.Contains(have.Coming, comingNIC(n.Name)) {
			p.InNICs = append(p.InNICs, n)
		}
	}
	return p
}

// Pending says in words what of s a run with the devices have will get with its
// next start only.
func (s Spec) Pending(have *Devices) []string {
	var all []string
	if have == nil {
		return nil
	}
	p := s.Plugs(have)
	for _, n := range p.OutDisks {
		all = append(all, "disk "+n+" goes")
	}
	for _, d := range p.InDisks {
		all = append(all, "disk "+d.Name+" comes")
	}
	for _, n := range p.OutNICs {
		all = append(all, "network card "+n+" goes")
	}
	for _, n := range p.InNICs {
		all = append(all, "network card "+n.Name+" comes")
	}
	for _, d := range s.Disks {
		if slices.ContainsFunc(have.Disks, func(h FurtherDisk) bool { return h.Name == d.Name && h.Disc == d.Disc && h != d }) {
			all = append(all, "disk "+d.Name+" changes")
		}
	}
	return all
}

// NICName is what the nth network card of a guest is called.
func NICName(n int) string { return fmt.Sprintf("eth%d", n) }

// Number is which of its guest's network cards n is. Cards keep their numbers
// when others are taken out.
func (n NIC) Number() int {
	i, err := strconv.Atoi(strings.TrimPrefix(n.Name, "eth"))
	if err != nil {
		return 0
	}
	return i
}
