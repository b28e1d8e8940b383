package admission

import (
	"errors"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
)

// withEngines is a door to a host with engines of all models.
func withEngines(t *testing.T) *Door {
	d := door(t, "10.67.0.0/16")
	d.Options.Engine = func(m guest.Model, name string) (Engine, error) {
		if name == "missing" {
			return Engine{}, &errs.Error{Kind: errs.Unsupported, Field: "engine", Msg: "missing cannot run here", Hint: "install it"}
		}
		return Engine{Name: string(m) + "-engine", Model: m, Disk: m == guest.VM, Pause: true}, nil
	}
	must(t)(d.CreateGuests(t.Context(), "user", GuestWish{Name: "web1", Image: "debian/12", Start: true}))
	rest(t, d, "web1", guest.Running)
	return d
}

func refused(t *testing.T, err error, kind errs.Kind, says, hint string) {
	t.Helper()
	e, ok := errors.AsType[*errs.Error](err)
	if !ok || e.Kind != kind || !strings.Contains(e.Words(), says) || !strings.Contains(e.Hint, hint) {
		t.Errorf("%#v; want %v: %q, hint %q", err, kind, says, hint)
	}
}

func TestChangeModel(t *testing.T) {
	d := withEngines(t)
	_, err := d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.VM})
	refused(t, err, errs.Conflict, "is running", "--restart")
	_, err = d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.OS, Restart: true})
	refused(t, err, errs.Conflict, "of model os already", "")
	_, err = d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: "pod", Restart: true})
	refused(t, err, errs.Invalid, "not a model", "vm, paravirt or os")
	_, err = d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.VM, Engine: "missing", Restart: true})
	refused(t, err, errs.Unsupported, "cannot run here", "install it")
	before := get(t, d, "web1")
	if before.Spec.Model != guest.OS || before.Generation != 1 {
		t.Fatalf("a refused wish changed the guest: %+v", before)
	}

	op := must(t)(d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.VM, Restart: true}))
	g := get(t, d, "web1")
	if g.Spec.Model != guest.VM || g.Spec.Models != 1 || g.Spec.Boots != before.Spec.Boots+1 || g.Spec.Power != guest.On || op.Spec.Subjects[0].Wish != 1 || op.Spec.Verb != "guest.model" {
		t.Errorf("%+v, %+v", g.Spec, op.Spec)
	}
	if g.Spec.NICs[0] != before.Spec.NICs[0] || g.Spec.Restart != before.Spec.Restart || g.Spec.Memory != before.Spec.Memory {
		t.Errorf("not kept: %+v", g.Spec)
	}
}

func TestChangeModelOfAStoppedGuestDoesNotStartIt(t *testing.T) {
	d := withEngines(t)
	must(t)(d.StopGuest(t.Context(), "user", "web1", false, nil))
	rest(t, d, "web1", guest.Placed)
	must(t)(d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.Paravirt, Restart: true}))
	if g := get(t, d, "web1"); g.Spec.Power != guest.Off || g.Spec.Boots != 1 || g.Spec.Model != guest.Paravirt {
		t.Errorf("%+v", g.Spec)
	}
}

// TestARefusedChangeCanBeAskedForAgain, and be given up.
func TestARefusedChangeCanBeAskedForAgain(t *testing.T) {
	d := withEngines(t)
	must(t)(d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.VM, Restart: true}))
	if _, err := d.Tables.Guests.SetStatus(t.Context(), get(t, d, "web1").ID, func(s *guest.Status) error { s.Refused, s.Model = 1, guest.OS; return nil }); err != nil {
		t.Fatal(err)
	}
	_, err := d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.OS, Restart: true})
	refused(t, err, errs.Conflict, "of model os already", "")
	op := must(t)(d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.VM, Restart: true}))
	if g := get(t, d, "web1"); g.Spec.Models != 2 || op.Spec.Subjects[0].Wish != 2 {
		t.Errorf("%+v", g.Spec)
	}
}

func TestADiskGuestStaysAVM(t *testing.T) {
	d := withEngines(t)
	im, err := d.Tables.Images.Get("debian/12")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Tables.Images.SetStatus(t.Context(), im.ID, func(s *image.Status) error { s.Info.Disk = "qcow2"; return nil }); err != nil {
		t.Fatal(err)
	}
	_, err = d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.Paravirt, Restart: true})
	refused(t, err, errs.Unsupported, "boot loader", "root-tree image")
}

func TestASavedGuestGoesOnFirst(t *testing.T) {
	d := withEngines(t)
	if _, err := d.Tables.Guests.SetStatus(t.Context(), get(t, d, "web1").ID, func(s *guest.Status) error { s.Saved = true; return nil }); err != nil {
		t.Fatal(err)
	}
	_, err := d.ChangeModel(t.Context(), "user", "web1", ModelWish{Model: guest.VM, Restart: true})
	refused(t, err, errs.Conflict, "saved", "lodge start web1")
}
