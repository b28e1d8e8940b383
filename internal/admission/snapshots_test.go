package admission

import (
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/model/snapshot"
	"lodge/internal/store/tables"
)

// withSnapshots is a door to a host whose virtual machines can be saved, with
// two running guests: web1 on the host's kernel and vm1.
func withSnapshots(t *testing.T) *Door {
	d := withEngines(t)
	plain := d.Options.Engine
	d.Options.Engine = func(m guest.Model, name string) (Engine, error) {
		e, err := plain(m, name)
		e.Save, e.Renew = m == guest.VM, m == guest.VM
		return e, err
	}
	must(t)(d.CreateGuests(t.Context(), "user", GuestWish{Name: "vm1", Image: "debian/12", Model: guest.VM, Start: true, Patch: Patch{Publish: ptr([]string{"8080:80"})}}))
	rest(t, d, "vm1", guest.Running)
	return d
}

// take is a snapshot that was taken.
func take(t *testing.T, d *Door, g, name string, memory bool) {
	t.Helper()
	must(t)(d.CreateSnapshot(t.Context(), "user", g, SnapshotWish{Name: name, Memory: memory}))
	_, s, err := d.Snapshot(g, name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Tables.Snapshots.SetStatus(t.Context(), s.ID, func(s *snapshot.Status) error {
		s.Taken = &snapshot.Taken{At: time.Now(), Memory: memory}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshots(t *testing.T) {
	d, ctx := withSnapshots(t), t.Context()
	op := must(t)(d.CreateSnapshot(ctx, "user", "web1", SnapshotWish{}))
	all := d.SnapshotsOf(get(t, d, "web1").ID)
	if len(all) != 1 || !strings.HasPrefix(all[0].Spec.Name, "at-") || op.Spec.Subjects[0].Kind != snapshot.Kind || all[0].Spec.Pool != "default" {
		t.Fatalf("%+v", all)
	}
	take(t, d, "web1", "s", false)
	for _, c := range []struct {
		guest string
		wish  SnapshotWish
		kind  errs.Kind
		says  string
		hint  string
	}{
		{"web1", SnapshotWish{Name: "s"}, errs.Exists, "has a snapshot s already", "snapshot rm web1 s"},
		{"web1", SnapshotWish{Name: "S/x"}, errs.Invalid, "name", ""},
		{"web1", SnapshotWish{Name: "m", Memory: true}, errs.Unsupported, "cannot keep its memory", "lodge model web1 vm"},
		{"web1", SnapshotWish{Name: "n", Note: strings.Repeat("x", 2000)}, errs.Invalid, "too long", ""},
		{"none", SnapshotWish{Name: "s"}, errs.NotFound, "", ""},
	} {
		_, err := d.CreateSnapshot(ctx, "user", c.guest, c.wish)
		refused(t, err, c.kind, c.says, c.hint)
	}
	must(t)(d.StopGuest(ctx, "user", "vm1", false, nil))
	rest(t, d, "vm1", guest.Placed)
	_, err := d.CreateSnapshot(ctx, "user", "vm1", SnapshotWish{Name: "m", Memory: true})
	refused(t, err, errs.Conflict, "does not run", "lodge start vm1")
}

func TestRestoreGuest(t *testing.T) {
	d, ctx := withSnapshots(t), t.Context()
	take(t, d, "vm1", "warm", true)
	take(t, d, "web1", "s", false)
	_, err := d.RestoreGuest(ctx, "user", "web1", "s", false)
	refused(t, err, errs.Conflict, "is running", "--start")
	_, err = d.RestoreGuest(ctx, "user", "web1", "warm", true)
	refused(t, err, errs.NotFound, "has no snapshot warm", "lodge snapshot ls web1")

	must(t)(d.RestoreGuest(ctx, "user", "web1", "s", true))
	g := get(t, d, "web1")
	if g.Spec.Boots != 2 || g.Spec.Power != guest.On || g.Spec.Restore.Wish != 1 || g.Spec.Restore.Memory {
		t.Errorf("%+v", g.Spec)
	}
	must(t)(d.RestoreGuest(ctx, "user", "vm1", "warm", true))
	if g = get(t, d, "vm1"); !g.Spec.Restore.Memory || g.Spec.Power != guest.On {
		t.Errorf("%+v", g.Spec)
	}
	must(t)(d.StopGuest(ctx, "user", "vm1", false, nil))
	rest(t, d, "vm1", guest.Placed)
	must(t)(d.RestoreGuest(ctx, "user", "vm1", "warm", false))
	if g = get(t, d, "vm1"); g.Spec.Restore.Wish != 2 || g.Spec.Power != guest.Saved {
		t.Errorf("its memory would be lost: %+v", g.Spec)
	}
	// Under another model it boots from the same files.
	must(t)(d.ChangeModel(ctx, "user", "vm1", ModelWish{Model: guest.OS}))
	must(t)(d.RestoreGuest(ctx, "user", "vm1", "warm", false))
	if g = get(t, d, "vm1"); g.Spec.Restore.Memory || g.Spec.Power != guest.Off {
		t.Errorf("%+v", g.Spec)
	}
}

func TestSnapshotsGoWithTheirGuest(t *testing.T) {
	d, ctx := withSnapshots(t), t.Context()
	take(t, d, "web1", "s", false)
	must(t)(d.StopGuest(ctx, "user", "web1", false, nil))
	rest(t, d, "web1", guest.Placed)
	_, err := d.RemoveGuest(ctx, "user", "web1", false)
	refused(t, err, errs.Conflict, "1 snapshots", "lodge rm --force web1")
	must(t)(d.RemoveGuest(ctx, "user", "web1", true))
	if all := d.SnapshotsOf(get(t, d, "web1").ID); len(all) != 1 || all[0].Deleting == nil {
		t.Errorf("%+v", all)
	}
}

func TestRemoveSnapshot(t *testing.T) {
	d, ctx := withSnapshots(t), t.Context()
	take(t, d, "web1", "s", false)
	must(t)(d.CloneGuest(ctx, "user", "web1", CloneWish{Name: "web2", Snapshot: "s"}))
	_, err := d.RemoveSnapshot(ctx, "user", "web1", "s")
	refused(t, err, errs.Conflict, "is being made of snapshot s", "")
	if _, err := d.Tables.Guests.SetStatus(ctx, get(t, d, "web2").ID, func(s *guest.Status) error { s.Cloned = true; return nil }); err != nil {
		t.Fatal(err)
	}
	op := must(t)(d.RemoveSnapshot(ctx, "user", "web1", "s"))
	if !op.Spec.Subjects[0].Gone {
		t.Errorf("%+v", op.Spec)
	}
	_, err = d.RestoreGuest(ctx, "user", "web1", "s", true)
	refused(t, err, errs.Conflict, "is being removed", "")
}

func TestCloneGuest(t *testing.T) {
	d, ctx := withSnapshots(t), t.Context()
	take(t, d, "vm1", "cold", false)
	for _, c := range []struct {
		from string
		wish CloneWish
		kind errs.Kind
		says string
	}{
		{"vm1", CloneWish{Name: "web1"}, errs.Exists, "exists already"},
		{"vm1", CloneWish{Name: "-"}, errs.Invalid, "name"},
		{"web1", CloneWish{Name: "x", Running: true}, errs.Unsupported, "cannot keep its memory"},
		{"vm1", CloneWish{Name: "x", Snapshot: "none"}, errs.NotFound, "has no snapshot none"},
		{"vm1", CloneWish{Name: "x", Snapshot: "cold", Running: true}, errs.Conflict, "without memory"},
	} {
		_, err := d.CloneGuest(ctx, "user", c.from, c.wish)
		refused(t, err, c.kind, c.says, "")
	}
	tpm := func(has bool) {
		t.Helper()
		if _, err := d.Tables.Guests.Update(ctx, "vm1", func(r *tables.GuestRecord) error { r.Spec.Hardware.TPM = has; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	tpm(true)
	_, err := d.CloneGuest(ctx, "user", "vm1", CloneWish{Name: "x", Running: true})
	refused(t, err, errs.Unsupported, "TPM", "")
	tpm(false)
	must(t)(d.CloneGuest(ctx, "user", "vm1", CloneWish{Name: "vm2", Running: true}))
	from, to := get(t, d, "vm1"), get(t, d, "vm2")
	if to.Spec.Power != guest.On || to.Spec.Boots != 1 || *to.Spec.Clone != (guest.CloneOf{Guest: from.ID, Memory: true}) || to.Spec.Model != guest.VM || to.Spec.Memory != from.Spec.Memory {
		t.Errorf("%+v", to.Spec)
	}
	a, b := from.Spec.NICs[0], to.Spec.NICs[0]
	if a.MAC == b.MAC || a.IPv4 == b.IPv4 || a.Network != b.Network {
		t.Errorf("%+v and %+v", a, b)
	}
	if got := d.PublishOf(to.ID); len(got) != 0 {
		t.Errorf("ports of the host lead to it: %v", got)
	}
	must(t)(d.CloneGuest(ctx, "user", "vm1", CloneWish{Name: "many", Running: true, Count: 3}))
	one, three := get(t, d, "many-1").Spec, get(t, d, "many-3").Spec
	if one.Clone.Group == "" || *one.Clone != *three.Clone || one.NICs[0].IPv4 == three.NICs[0].IPv4 {
		t.Errorf("%+v %+v", one.Clone, three.Clone)
	}
	if _, err := d.CloneGuest(ctx, "user", "vm1", CloneWish{Name: "many", Count: 5}); !errs.Is(err, errs.Exists) {
		t.Errorf("over those that are there: %v", err)
	}
	must(t)(d.CloneGuest(ctx, "user", "web1", CloneWish{Name: "web2"}))
	if g := get(t, d, "web2"); g.Spec.Power != guest.Off || g.Spec.Boots != 0 || g.Spec.Clone.Memory {
		t.Errorf("%+v", g.Spec)
	}
}

func TestSaveGuest(t *testing.T) {
	d, ctx := withSnapshots(t), t.Context()
	_, err := d.SaveGuest(ctx, "user", "web1")
	refused(t, err, errs.Unsupported, "cannot keep its memory", "")
	must(t)(d.SaveGuest(ctx, "user", "vm1"))
	if g := get(t, d, "vm1"); g.Spec.Power != guest.Saved {
		t.Errorf("%+v", g.Spec)
	}
	must(t)(d.StopGuest(ctx, "user", "vm1", false, nil))
	rest(t, d, "vm1", guest.Placed)
	_, err = d.SaveGuest(ctx, "user", "vm1")
	refused(t, err, errs.Conflict, "is not running", "")
}
