package admission

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/kernel"
	"lodge/internal/model/network"
)

// machineDoor is a door to a host with an engine for each model; "blank" is the
// image of a disk.
func machineDoor(t *testing.T) *Door {
	t.Helper()
	d := door(t, "10.67.0.0/16")
	d.Host.Architecture = "amd64"
	engines := []Engine{
		{Name: "own", Model: guest.OS, Form: guest.Tree, Pause: true},
		{Name: "box", Model: guest.VM, Form: guest.Volume, Kernel: "linux", CPUModels: []string{"max", "plain"}, Features: []string{"svm", "avx"}, Plug: true, Disk: true, Machines: []Machine{
			{Name: "full", Firmware: []string{"bios", "uefi"}}, {Name: "micro"}, {Name: "trusted", Firmware: []string{"uefi-secure"}, TPM: true},
		}},
		{Name: "port", Model: guest.Paravirt, Form: guest.Volume, Kernel: "um"},
	}
	d.Engine = func(m guest.Model, name string) (Engine, error) {
		for _, e := range engines {
			switch {
			case name == "" && e.Model == m, name == e.Name && e.Model == m:
				return e, nil
			case name == e.Name:
				return Engine{}, errs.Bad("engine", name+" runs guests of model "+string(e.Model), "use --model "+string(e.Model))
			}
		}
		return Engine{}, errs.Bad("engine", "there is no engine "+name, "lodge engine ls")
	}
	d.CheckDisc = func(path string) error {
		if path != "/srv/cd.iso" {
			return &errs.Error{Kind: errs.NotFound, Msg: path + " is not on this host"}
		}
		return nil
	}
	for _, name := range []string{"linux/x", "um/x"} {
		r, err := d.Tables.Kernels.Create(t.Context(), name, kernel.Spec{Wish: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Tables.Kernels.SetStatus(t.Context(), r.ID, func(s *kernel.Status) error { s.Wish, s.Digest = 1, "sha256:k"; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for name, info := range map[string]image.Info{"blank": {Disk: "raw", DiskSize: 1 << 30}, "arm": {Init: []string{"/init"}, Architecture: "arm64"}} {
		r, err := d.Tables.Images.Create(t.Context(), name, image.Spec{Wish: 1})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Tables.Images.SetStatus(t.Context(), r.ID, func(s *image.Status) error {
			s.Wish, s.Digest, s.Info = 1, "sha256:"+name, info
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func wanting(model guest.Model, img string, change func(*Patch)) GuestWish {
	w := GuestWish{Name: "g", Image: img, Model: model}
	change(&w.Patch)
	return w
}

// TestRefusedMachines has every way to ask for a machine that cannot be. Each
// answer names the field and says what to do, and nothing is written.
func TestRefusedMachines(t *testing.T) {
	d := machineDoor(t)
	disks := func(all ...guest.FurtherDisk) func(*Patch) { return func(p *Patch) { p.Disks = &all } }
	many := make([]guest.FurtherDisk, maxDisks+1)
	before := d.Store.Rev()
	for name, c := range map[string]struct {
		wish  GuestWish
		kind  errs.Kind
		field string
	}{
		"unknown engine":             {wanting(guest.VM, "debian/12", func(p *Patch) { p.Engine = ptr("kvm") }), errs.Invalid, "engine"},
		"engine of another model":    {wanting(guest.VM, "debian/12", func(p *Patch) { p.Engine = ptr("port") }), errs.Invalid, "engine"},
		"machine unknown":            {wanting(guest.VM, "debian/12", func(p *Patch) { p.Machine = ptr("pc") }), errs.Invalid, "machine"},
		"machine of the host itself": {wanting(guest.OS, "debian/12", func(p *Patch) { p.Machine = ptr("full") }), errs.Invalid, "machine"},
		"machine without firmware":   {wanting(guest.VM, "blank", func(p *Patch) { p.Machine = ptr("micro") }), errs.Invalid, "machine"},
		"microvm with uefi":          {wanting(guest.VM, "blank", func(p *Patch) { p.Machine, p.Firmware = ptr("micro"), ptr("uefi") }), errs.Invalid, "machine"},
		"firmware of a tree":         {wanting(guest.VM, "debian/12", func(p *Patch) { p.Firmware = ptr("uefi") }), errs.Invalid, "firmware"},
		"firmware unknown":           {wanting(guest.VM, "blank", func(p *Patch) { p.Firmware = ptr("openboot") }), errs.Invalid, "firmware"},
		"firmware of another":        {wanting(guest.VM, "blank", func(p *Patch) { p.Machine, p.Firmware = ptr("trusted"), ptr("bios") }), errs.Invalid, "firmware"},
		"tpm that is not there":      {wanting(guest.VM, "blank", func(p *Patch) { p.TPM = ptr(true) }), errs.Unsupported, "tpm"},
		"tpm of the host's kernel":   {wanting(guest.OS, "debian/12", func(p *Patch) { p.TPM = ptr(true) }), errs.Invalid, "tpm"},
		"cpu model unknown":          {wanting(guest.VM, "debian/12", func(p *Patch) { p.CPUModel = ptr("z80") }), errs.Invalid, "cpu_model"},
		"cpu feature unknown":        {wanting(guest.VM, "debian/12", func(p *Patch) { p.CPUModel = ptr("max,+svm,+wings") }), errs.Invalid, "cpu_model"},
		"cpu feature without sign":   {wanting(guest.VM, "debian/12", func(p *Patch) { p.CPUModel = ptr("max,svm") }), errs.Invalid, "cpu_model"},
		"cpu feature missing":        {wanting(guest.VM, "debian/12", func(p *Patch) { p.CPUModel = ptr("max,") }), errs.Invalid, "cpu_model"},
		"cpu feature of no model":    {wanting(guest.VM, "debian/12", func(p *Patch) { p.CPUModel = ptr(",+svm") }), errs.Invalid, "cpu_model"},
		"cpu model of the host":      {wanting(guest.Paravirt, "debian/12", func(p *Patch) { p.CPUModel = ptr("max") }), errs.Invalid, "cpu_model"},
		"kernel missing":             {wanting(guest.VM, "debian/12", func(p *Patch) { p.Kernel = ptr("linux/mine") }), errs.NotFound, "kernel"},
		"kernel of the host":         {wanting(guest.OS, "debian/12", func(p *Patch) { p.Kernel = ptr("linux/x") }), errs.Invalid, "kernel"},
		"kernel of a disk":           {wanting(guest.VM, "blank", func(p *Patch) { p.Kernel = ptr("linux/x") }), errs.Invalid, "kernel"},
		"disk image as os":           {wanting(guest.OS, "blank", func(*Patch) {}), errs.Unsupported, "model"},
		"disk image as paravirt":     {wanting(guest.Paravirt, "blank", func(*Patch) {}), errs.Unsupported, "model"},
		"command on a disk":          {wanting(guest.VM, "blank", func(p *Patch) { p.Command = ptr([]string{"sh"}) }), errs.Invalid, "command"},
		"another architecture":       {wanting(guest.VM, "arm", func(*Patch) {}), errs.Invalid, "image"},
		"no memory for a kernel":     {wanting(guest.VM, "debian/12", func(p *Patch) { p.Memory = ptr(uint64(8 << 20)) }), errs.Invalid, "memory_bytes"},
		"disks on the host's kernel": {wanting(guest.OS, "debian/12", disks(guest.FurtherDisk{Name: "a", Size: 1 << 30})), errs.Invalid, "disks"},
		"too many disks":             {wanting(guest.VM, "debian/12", disks(many...)), errs.Invalid, "disks"},
		"disk without a name":        {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Size: 1 << 30})), errs.Invalid, "disks[0].name"},
		"disk with a bad name":       {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "../x", Size: 1 << 30})), errs.Invalid, "disks[0].name"},
		"disk with a long name":      {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: strings.Repeat("a", 21), Size: 1 << 30})), errs.Invalid, "disks[0].name"},
		"disk called root":           {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "root", Size: 1 << 30})), errs.Invalid, "disks[0].name"},
		"disk twice":                 {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "a", Size: 1 << 30}, guest.FurtherDisk{Name: "a", Disc: "/srv/cd.iso"})), errs.Invalid, "disks[1].name"},
		"disk of size 0":             {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "a"})), errs.Invalid, "disks[0].size_bytes"},
		"disk and disc":              {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "a", Size: 1 << 30, Disc: "/srv/cd.iso"})), errs.Invalid, "disks[0].size_bytes"},
		"disc missing":               {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "cd", Disc: "/srv/none.iso"})), errs.NotFound, "disks[0].iso"},
		"disc by a relative path":    {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "cd", Disc: "cd.iso"})), errs.Invalid, "disks[0].iso"},
		"boot order of a tree":       {wanting(guest.VM, "debian/12", disks(guest.FurtherDisk{Name: "cd", Disc: "/srv/cd.iso", Boot: 1})), errs.Invalid, "disks[0].boot"},
		"boot order negative":        {wanting(guest.VM, "blank", disks(guest.FurtherDisk{Name: "cd", Disc: "/srv/cd.iso", Boot: -1})), errs.Invalid, "disks[0].boot"},
		"boot order twice":           {wanting(guest.VM, "blank", disks(guest.FurtherDisk{Name: "a", Size: 1 << 30, Boot: 1}, guest.FurtherDisk{Name: "b", Size: 1 << 30, Boot: 1})), errs.Invalid, "disks[1].boot"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.CreateGuests(t.Context(), "user", c.wish)
			e, ok := errors.AsType[*errs.Error](err)
			if !ok || e.Kind != c.kind || e.Field != c.field || e.Msg == "" || e.Hint == "" {
				t.Fatalf("%#v", err)
			}
		})
	}
	if d.Store.Rev() != before {
		t.Fatal("something was written")
	}
}

func TestMachines(t *testing.T) {
	d := machineDoor(t)
	for name, w := range map[string]GuestWish{
		"features":  wanting(guest.VM, "debian/12", func(p *Patch) { p.CPUModel = ptr("plain,+svm,-avx") }),
		"tree":      wanting(guest.VM, "debian/12", func(p *Patch) { p.Machine, p.CPUModel, p.Kernel = ptr("micro"), ptr("plain"), ptr("linux/x") }),
		"paravirt":  wanting(guest.Paravirt, "debian/12", func(p *Patch) { p.Engine = ptr("port") }),
		"disk":      wanting(guest.VM, "blank", func(p *Patch) { p.Firmware = ptr("uefi") }),
		"trusted":   wanting(guest.VM, "blank", func(p *Patch) { p.Machine, p.Firmware, p.TPM = ptr("trusted"), ptr("uefi-secure"), ptr(true) }),
		"with-disc": wanting(guest.VM, "blank", func(p *Patch) { p.Disks = ptr([]guest.FurtherDisk{{Name: "cd", Disc: "/srv/cd.iso", Boot: 1}}) }),
	} {
		w.Name = name
		must(t)(d.CreateGuests(t.Context(), "user", w))
	}
	if h := get(t, d, "trusted").Spec.Hardware; h != (guest.Hardware{Machine: "trusted", Firmware: "uefi-secure", TPM: true}) {
		t.Errorf("%+v", h)
	}
}

func TestChangedMachine(t *testing.T) {
	d := machineDoor(t)
	ctx := t.Context()
	must(t)(d.CreateGuests(ctx, "user", wanting(guest.VM, "debian/12", func(p *Patch) { p.Disks = ptr([]guest.FurtherDisk{{Name: "data", Size: 2 << 30}}) })))
	set := func(change func(*Patch)) error {
		var p Patch
		change(&p)
		_, err := d.SetGuest(ctx, "user", "g", p, 0)
		return err
	}
	if err := set(func(p *Patch) { p.Disks = ptr([]guest.FurtherDisk{{Name: "data", Size: 4 << 30}}) }); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Patch)
		kind   errs.Kind
		field  string
	}{
		"data would be lost":    {func(p *Patch) { p.Disks = ptr([]guest.FurtherDisk{}) }, errs.Conflict, "disks"},
		"data would be a disc":  {func(p *Patch) { p.Disks = ptr([]guest.FurtherDisk{{Name: "data", Disc: "/srv/cd.iso"}}) }, errs.Conflict, "disks"},
		"smaller":               {func(p *Patch) { p.Disks = ptr([]guest.FurtherDisk{{Name: "data", Size: 3 << 30}}) }, errs.Invalid, "disks[0].size_bytes"},
		"machine unknown":       {func(p *Patch) { p.Machine = ptr("pc") }, errs.Invalid, "machine"},
		"engine of another one": {func(p *Patch) { p.Engine = ptr("own") }, errs.Invalid, "engine"},
	} {
		err := set(c.change)
		if e, ok := errors.AsType[*errs.Error](err); !ok || e.Kind != c.kind || e.Field != c.field || e.Hint == "" {
			t.Errorf("%s: %#v", name, err)
		}
	}
	// What is not about the machine can be changed even when its engine is gone.
	d.Engine = func(guest.Model, string) (Engine, error) {
		return Engine{}, &errs.Error{Kind: errs.Unsupported, Field: "model", Msg: "gone"}
	}
	if err := set(func(p *Patch) { p.Restart = ptr(guest.Always) }); err != nil {
		t.Error(err)
	}
}

func TestAttachAndDetachDisks(t *testing.T) {
	d := machineDoor(t)
	ctx := t.Context()
	must(t)(d.CreateGuests(ctx, "user", wanting(guest.VM, "debian/12", func(*Patch) {})))
	must(t)(d.AttachDisk(ctx, "user", "g", guest.FurtherDisk{Name: "data", Size: 1 << 30}))
	must(t)(d.AttachDisk(ctx, "user", "g", guest.FurtherDisk{Name: "cd", Disc: "/srv/cd.iso"}))
	if _, err := d.AttachDisk(ctx, "user", "g", guest.FurtherDisk{Name: "data", Size: 1 << 30}); !errs.Is(err, errs.Exists) {
		t.Errorf("twice: %v", err)
	}
	if _, err := d.AttachDisk(ctx, "user", "g", guest.FurtherDisk{Name: "x"}); !errs.Is(err, errs.Invalid) {
		t.Errorf("without a size: %v", err)
	}
	if _, err := d.DetachDisk(ctx, "user", "g", "none"); !errs.Is(err, errs.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	must(t)(d.DetachDisk(ctx, "user", "g", "data"))
	if all := get(t, d, "g").Spec.Disks; !slices.Equal(all, []guest.FurtherDisk{{Name: "cd", Disc: "/srv/cd.iso"}}) {
		t.Errorf("%+v", all)
	}
	must(t)(d.CreateGuests(ctx, "user", GuestWish{Name: "o", Image: "debian/12"}))
	if _, err := d.AttachDisk(ctx, "user", "o", guest.FurtherDisk{Name: "data", Size: 1 << 30}); !errs.Is(err, errs.Invalid) {
		t.Errorf("to a guest on the host's kernel: %v", err)
	}
}

func TestAttachAndDetachCards(t *testing.T) {
	d := machineDoor(t)
	ctx := t.Context()
	for _, n := range []string{"lab", "dmz"} {
		must(t)(d.CreateNetwork(ctx, "user", NetworkWish{Name: n}))
	}
	must(t)(d.CreateGuests(ctx, "user", GuestWish{Name: "g", Image: "debian/12", Patch: Patch{Publish: ptr([]string{"8080:80"})}}))
	rest(t, d, "g", guest.Running)
	must(t)(d.AttachNIC(ctx, "user", "g", "lab"))
	must(t)(d.AttachNIC(ctx, "user", "g", "dmz"))
	g := get(t, d, "g")
	lab := g.Spec.NICs[1]
	if lab.Name != "eth1" || lab.MAC != guest.MACOf(g.ID, 1) || lab.IPv4 == "" || len(g.Spec.NICs) != 3 {
		t.Fatalf("%+v", g.Spec.NICs)
	}
	lease := network.LeaseName("lab", lab.IPv4)
	if l, err := d.Tables.Leases.Get(lease); err != nil || l.Spec.Guest != g.ID {
		t.Fatalf("%+v, %v", l, err)
	}
	if _, err := d.AttachNIC(ctx, "user", "g", "lab"); !errs.Is(err, errs.Exists) {
		t.Errorf("twice: %v", err)
	}
	if _, err := d.AttachNIC(ctx, "user", "g", "none"); !errs.Is(err, errs.NotFound) {
		t.Errorf("an unknown network: %v", err)
	}
	if _, err := d.DetachNIC(ctx, "user", "g", "eth1"); !errs.Is(err, errs.Conflict) {
		t.Errorf("while it runs on an engine that cannot: %v", err)
	}
	rest(t, d, "g", guest.Placed)
	if _, err := d.DetachNIC(ctx, "user", "g", "eth9"); !errs.Is(err, errs.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	if _, err := d.DetachNIC(ctx, "user", "g", "eth0"); !errs.Is(err, errs.Conflict) {
		t.Errorf("one that ports lead to: %v", err)
	}
	must(t)(d.DetachNIC(ctx, "user", "g", "eth1"))
	if _, err := d.Tables.Leases.Get(lease); !errs.Is(err, errs.NotFound) {
		t.Errorf("its address is still taken: %v", err)
	}
	if left := get(t, d, "g").Spec.NICs; len(left) != 2 || left[1].Name != "eth2" {
		t.Errorf("%+v", left)
	}
	must(t)(d.AttachNIC(ctx, "user", "g", "lab"))
	if n := get(t, d, "g").Spec.NICs; n[2].Name != "eth3" {
		t.Errorf("a card that is there and one that comes share a name: %+v", n)
	}
}
