package admission

import (
	"context"
	"errors"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/guest"
	"lodge/internal/model/kernel"
)

// withMachines lets the door's host run virtual machines and build one kernel.
func withMachines(d *Door) {
	d.Engine = func(m guest.Model, _ string) (Engine, error) {
		if m == guest.VM {
			return Engine{Name: "box", Model: m, Form: guest.Volume, Kernel: "linux"}, nil
		}
		return Engine{Name: "toy", Model: guest.OS, Form: guest.Tree, Pause: true}, nil
	}
	d.CheckKernel = func(name string) error {
		if name != "linux/debian-12" {
			return errs.Bad("name", "there is no kernel "+name, "use linux/debian-12")
		}
		return nil
	}
}

func kernelReady(t *testing.T, d *Door, name string) {
	t.Helper()
	r, err := d.Tables.Kernels.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Tables.Kernels.SetStatus(t.Context(), r.ID, func(s *kernel.Status) error {
		*s = kernel.Status{Wish: r.Spec.Wish, Generation: r.Generation, Digest: "d"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestAMachineNeedsAKernel(t *testing.T) {
	d := door(t, "10.67.0.0/24")
	withMachines(d)
	ctx := context.Background()
	launch := func(name string) error {
		_, err := d.CreateGuests(ctx, "user", GuestWish{Name: name, Image: "debian/12", Model: guest.VM})
		return err
	}
	wants := func(name string, m guest.Model) error {
		return d.checkKernel(guest.Spec{Model: m, Hardware: guest.Hardware{Kernel: name}})
	}
	says := func(err error, kind errs.Kind, ref, hint string) {
		t.Helper()
		e, ok := errors.AsType[*errs.Error](err)
		if !ok || e.Kind != kind || e.Ref != ref || e.Field != "kernel" || !strings.Contains(e.Hint, hint) {
			t.Errorf("%+v", err)
		}
	}
	says(launch("web1"), errs.NotFound, "kernel/linux/debian-12", "lodge kernel build linux/debian-12")
	if _, err := d.BuildKernel(ctx, "user", "linux/nobodys", false); !errs.Is(err, errs.Invalid) {
		t.Error(err)
	}
	must(t)(d.BuildKernel(ctx, "user", "linux/debian-12", false))
	says(launch("web1"), errs.Busy, "kernel/linux/debian-12", "wait")
	r, err := d.Tables.Kernels.Get("linux/debian-12")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Tables.Kernels.SetStatus(ctx, r.ID, func(s *kernel.Status) error {
		s.Problem, s.Generation = &model.Problem{Message: "no mirror"}, r.Generation
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := launch("web1"); !errs.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "no mirror") {
		t.Error(err)
	}
	must(t)(d.BuildKernel(ctx, "user", "linux/debian-12", false)) // asked for again, it is tried again
	if r, _ := d.Tables.Kernels.Get("linux/debian-12"); r.Spec.Wish != 2 {
		t.Errorf("%+v", r.Spec)
	}
	kernelReady(t, d, "linux/debian-12")
	says(wants("um/debian-sid", guest.VM), errs.Invalid, "", "linux/")
	says(wants("linux/mine", guest.VM), errs.NotFound, "kernel/linux/mine", "lodge kernel build")
	if err := wants("linux/debian-12", guest.OS); !errs.Is(err, errs.Invalid) {
		t.Errorf("a kernel for a guest that has none: %v", err)
	}
	if err := launch("web1"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RemoveKernel(ctx, "user", "linux/debian-12"); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "web1") {
		t.Error(err)
	}
	must(t)(d.RemoveGuest(ctx, "user", "web1", true))
	g, err := d.Tables.Guests.Get("web1")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Tables.Guests.Delete(ctx, g.ID); err != nil {
		t.Fatal(err)
	}
	must(t)(d.RemoveKernel(ctx, "user", "linux/debian-12"))
}

func TestARefreshBuildsAgainOnce(t *testing.T) {
	d := door(t, "10.67.0.0/24")
	withMachines(d)
	ctx := context.Background()
	wish := func(refresh bool) int64 {
		t.Helper()
		must(t)(d.BuildKernel(ctx, "user", "linux/debian-12", refresh))
		r, err := d.Tables.Kernels.Get("linux/debian-12")
		if err != nil {
			t.Fatal(err)
		}
		return r.Spec.Wish
	}
	if a, b := wish(true), wish(true); a != 1 || b != 1 {
		t.Errorf("while one is built: %d %d", a, b)
	}
	kernelReady(t, d, "linux/debian-12")
	if a, b, c := wish(false), wish(true), wish(true); a != 1 || b != 2 || c != 2 {
		t.Errorf("%d %d %d", a, b, c)
	}
}
