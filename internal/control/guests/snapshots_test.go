package guests

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine"
	"lodge/internal/keeper"
	"lodge/internal/model/guest"
	"lodge/internal/model/snapshot"
	"lodge/internal/storage"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// shelf is a pool whose volumes are folders, and their snapshots copies.
type shelf struct {
	storage.Pool
	dir  string
	fail error // what Snapshot and Clone answer with
}

func (s *shelf) Path(volume string) string { return filepath.Join(s.dir, "volumes", volume) }
func (s *shelf) SnapshotPath(volume, name string) string {
	return filepath.Join(s.dir, "snapshots", volume, name)
}
func (s *shelf) Create(_ context.Context, volume string, _ uint64) error {
	if err := os.MkdirAll(s.Path(volume), 0o700); err != nil {
		return err
	}
	return storage.Furnish(s.Path(volume))
}
func (s *shelf) SetQuota(context.Context, string, uint64) error { return nil }
func (s *shelf) Remove(_ context.Context, volume string) error  { return os.RemoveAll(s.Path(volume)) }
func (s *shelf) Space(context.Context) (storage.Space, error) {
	return storage.Space{Total: 1 << 40, Free: 1 << 40}, nil
}
func (s *shelf) Snapshots(_ context.Context, volume string) ([]string, error) {
	names, err := storage.List(filepath.Join(s.dir, "snapshots", volume))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return names, err
}
func (s *shelf) copy(from, to string) error {
	if s.fail != nil {
		return s.fail
	}
	if _, err := os.Stat(from); err != nil {
		return storage.Failed("copy", from, err)
	}
	return os.CopyFS(to, os.DirFS(from))
}
func (s *shelf) Snapshot(_ context.Context, volume, name string) error {
	return s.copy(s.Path(volume), s.SnapshotPath(volume, name))
}
func (s *shelf) Restore(_ context.Context, volume, name string) error {
	if _, err := os.Stat(s.SnapshotPath(volume, name)); err != nil {
		return storage.Failed("restore", name, err)
	}
	if err := os.RemoveAll(s.Path(volume)); err != nil {
		return err
	}
	return s.copy(s.SnapshotPath(volume, name), s.Path(volume))
}
func (s *shelf) Clone(_ context.Context, from, snap, to string) error {
	if snap != "" {
		return s.copy(s.SnapshotPath(from, snap), s.Path(to))
	}
	return s.copy(s.Path(from), s.Path(to))
}

// saver is an engine whose machines can be saved and be given an identity.
type saver struct {
	*toy
	shelf  *shelf
	log    []string
	broken error // what Save answers with
	deaf   error // what Renew answers with
}

func (e *saver) note(what string) { e.log = append(e.log, what) }

func (e *saver) said() string {
	text := strings.Join(e.log, " ")
	e.log = nil
	return text
}

func (e *saver) Program(g guest.Guest, p engine.Parts) (prog keeper.Program, err error) {
	e.note("start:" + filepath.Base(p.Memory))
	return e.toy.Program(g, p)
}

func (e *saver) Connect(_ context.Context, g guest.Guest, _ engine.Parts, _ keeper.Held) (engine.Machine, error) {
	return saverMachine{toyMachine{e.toy, g.ID}, e}, nil
}

type saverMachine struct {
	toyMachine
	e *saver
}

func (m saverMachine) Pause(ctx context.Context) error {
	m.e.note("pause")
	return m.toyMachine.Pause(ctx)
}
func (m saverMachine) Resume(ctx context.Context) error {
	m.e.note("resume")
	return m.toyMachine.Resume(ctx)
}
func (m saverMachine) Quiesce(context.Context) (func() error, error) {
	m.e.note("quiesce")
	return func() error { m.e.note("release"); return nil }, nil
}
func (m saverMachine) Save(_ context.Context, dir string) error {
	if !m.frozen {
		return errors.New("it is not paused")
	}
	m.e.note("save")
	return errors.Join(m.e.broken, os.WriteFile(filepath.Join(dir, "ram"), []byte(m.id), 0o600))
}
func (m saverMachine) Renew(context.Context) error { m.e.note("renew"); return m.e.deaf }

func newSaver(t *testing.T) (*world, *saver) {
	t.Helper()
	var e *saver
	w := newWorldOf(t, guest.Spec{Power: guest.On, Boots: 1}, engine.Info{Name: "saver", Model: guest.OS, Form: guest.Tree, Can: engine.Can{Save: true}},
		func(k *toy) engine.Engine { e = &saver{toy: k}; return e })
	e.shelf = &shelf{dir: t.TempDir()}
	w.r.Pools.Put("default", e.shelf)
	w.expect(w.settle(), guest.Running)
	e.said()
	w.put("first")
	return w, e
}

func (w *world) upper(id string) string {
	p, _ := w.r.Pools.Get("default")
	return filepath.Join(p.Path(id), "upper", "f")
}

func (w *world) put(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.upper(w.id), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) holds(id, want string) {
	w.t.Helper()
	if b, err := os.ReadFile(w.upper(id)); err != nil || string(b) != want {
		w.t.Errorf("the volume holds %q (%v), want %q", b, err, want)
	}
}

func (w *world) memory(want bool) {
	w.t.Helper()
	p, _ := w.r.Pools.Get("default")
	if got := exists(filepath.Join(p.Path(w.id), memoryDir)); got != want {
		w.t.Errorf("memory in the volume: %v, want %v", got, want)
	}
	if exists(filepath.Join(p.Path(w.id), memoryNew)) {
		w.t.Error("half a memory was left")
	}
}

func TestSnapshotOfARunningGuest(t *testing.T) {
	w, e := newSaver(t)
	taken, err := w.r.TakeSnapshot(t.Context(), w.id, "s1", false)
	if err != nil || taken.Rest != snapshot.Quiesced || taken.Memory || taken.Model != "os" {
		t.Errorf("%+v, %v", taken, err)
	}
	if s := e.said(); s != "quiesce pause resume release" {
		t.Errorf("it was brought to rest by: %s", s)
	}
	taken, err = w.r.TakeSnapshot(t.Context(), w.id, "s2", true)
	if err != nil || !taken.Memory || taken.Rest != snapshot.Frozen {
		t.Errorf("%+v, %v", taken, err)
	}
	if s := e.said(); s != "pause save resume" {
		t.Errorf("with memory: %s", s)
	}
	w.memory(false)
	// The daemon died before it could write that down: what is there counts.
	if again, err := w.r.TakeSnapshot(t.Context(), w.id, "s2", true); err != nil || !again.Memory || e.said() != "" {
		t.Errorf("%+v, %v", again, err)
	}
}

func TestAFailedSnapshotLetsTheGuestGoOn(t *testing.T) {
	w, e := newSaver(t)
	for _, memory := range []bool{false, true} {
		e.shelf.fail = errors.New("the disk broke")
		if _, err := w.r.TakeSnapshot(t.Context(), w.id, "s", memory); err == nil {
			t.Error("no error")
		}
		if e.frozen {
			t.Error("it stands still")
		}
		w.memory(false)
	}
	e.shelf.fail, e.broken = nil, errors.New("no room")
	if _, err := w.r.TakeSnapshot(t.Context(), w.id, "s", true); err == nil || e.frozen {
		t.Errorf("%v, frozen %v", err, e.frozen)
	}
	w.memory(false)
}

// restore asks for a snapshot as the door does.
func restore(name string, memory bool, power guest.Power) func(*guest.Spec) {
	return func(s *guest.Spec) {
		wish := int64(1)
		if s.Restore != nil {
			wish = s.Restore.Wish + 1
		}
		s.Restore = &guest.RestoreOf{Wish: wish, Snapshot: name, Memory: memory}
		if s.Power = power; power == guest.On {
			s.Boots++
		}
	}
}

func TestRestore(t *testing.T) {
	w, e := newSaver(t)
	for name, memory := range map[string]bool{"plain": false, "deep": true} {
		if _, err := w.r.TakeSnapshot(t.Context(), w.id, name, memory); err != nil {
			t.Fatal(err)
		}
	}
	w.put("second")
	e.said()

	w.wish(restore("plain", false, guest.On)) // of a running guest: it is taken down, and comes back
	w.expect(w.through(), guest.Running)
	w.holds(w.id, "first")
	if s := e.said(); !strings.HasSuffix(s, "start:.") {
		t.Errorf("it came back by: %s", s)
	}
	if e.asked != 0 || e.killed != 1 {
		t.Errorf("what is thrown away was asked %d times to stop, and ended %d times", e.asked, e.killed)
	}

	w.put("third")
	w.wish(restore("deep", true, guest.On))
	w.expect(w.through(), guest.Running)
	w.holds(w.id, "first")
	if s := e.said(); !strings.HasSuffix(s, "start:memory.used renew") {
		t.Errorf("it went on by: %s", s)
	}
	w.memory(false)

	w.put("fourth")
	w.wish(func(s *guest.Spec) { s.Power = guest.Off })
	w.expect(w.through(), guest.Placed)
	w.wish(restore("deep", true, guest.Saved))
	s := w.settle()
	w.expect(s, guest.Placed)
	w.memory(true)
	if !s.Saved || s.Restored != 3 {
		t.Errorf("status %+v", s)
	}
	w.wish(func(s *guest.Spec) { s.Power = guest.Off }) // wants no more of it
	if s := w.settle(); s.Saved {
		t.Error("is still saved")
	}
	w.memory(false)
}

func TestRestoreOfASnapshotThatIsGone(t *testing.T) {
	w, _ := newSaver(t)
	w.wish(func(s *guest.Spec) { s.Power = guest.Off })
	w.expect(w.through(), guest.Placed)
	w.wish(restore("never", false, guest.Off))
	if _, err := w.pass(); !errs.Is(err, errs.NotFound) {
		t.Errorf("%v, want not-found", err)
	}
	w.expect(w.settle(), guest.Placed)
	w.holds(w.id, "first")
}

func TestSave(t *testing.T) {
	w, e := newSaver(t)
	w.wish(func(s *guest.Spec) { s.Power = guest.Saved })
	w.settle()
	s := w.settle()
	w.expect(s, guest.Placed)
	if said := e.said(); !s.Saved || s.Exit != nil || !strings.HasPrefix(said, "pause save") {
		t.Errorf("status %+v after: %s", s, said)
	}
	w.memory(true)
	w.wish(func(s *guest.Spec) { s.Power, s.Boots = guest.On, s.Boots+1 })
	e.frozen = false
	s = w.settle()
	w.expect(s, guest.Running)
	if said := e.said(); s.Saved || said != "start:memory.used renew" { // it is told the time
		t.Errorf("status %+v after: %s", s, said)
	}
	w.memory(false)
}

func TestASaveThatFailsLetsTheGuestGoOn(t *testing.T) {
	w, e := newSaver(t)
	e.broken = errors.New("no room")
	w.wish(func(s *guest.Spec) { s.Power = guest.Saved })
	if _, err := w.pass(); err == nil || e.frozen {
		t.Errorf("%v, frozen %v", err, e.frozen)
	}
	w.memory(false)
}

// TestAGuestThatDidNotStartKeepsItsMemory, and one that did has used it up,
// however it ends.
func TestAGuestThatDidNotStartKeepsItsMemory(t *testing.T) {
	w, e := newSaver(t)
	w.wish(func(s *guest.Spec) { s.Power = guest.Saved })
	w.settle()
	w.expect(w.settle(), guest.Placed)
	w.wish(func(s *guest.Spec) { s.Power, s.Boots = guest.On, s.Boots+1 })
	w.k.fail = &errs.Error{Kind: errs.Unavailable, Msg: "the keeper is away"}
	if _, err := w.pass(); err == nil {
		t.Fatal("no error")
	}
	w.memory(true)
	w.k.fail, e.frozen = nil, false
	e.said()
	w.expect(w.settle(), guest.Running)
	if s := e.said(); !strings.HasPrefix(s, "start:memory.used") {
		t.Errorf("it went on by: %s", s)
	}
	w.memory(false)
}

// TestCutOffBeforeItStarted: the daemon died after it had taken the memory and
// before the guest ran; then after it ran.
func TestCutOffBeforeItStarted(t *testing.T) {
	for written, want := range map[bool]string{false: "start:memory.used renew", true: "start:."} {
		w, e := newSaver(t)
		disk := filepath.Join(e.shelf.Path(w.id), "root.qcow2")
		if err := os.WriteFile(disk, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.wish(func(s *guest.Spec) { s.Power = guest.Saved })
		w.settle()
		w.expect(w.settle(), guest.Placed)
		dir := e.shelf.Path(w.id)
		if err := os.Rename(filepath.Join(dir, memoryDir), filepath.Join(dir, memoryUsed)); err != nil {
			t.Fatal(err)
		}
		if written {
			later := time.Now().Add(time.Second)
			if err := os.Chtimes(disk, later, later); err != nil {
				t.Fatal(err)
			}
		}
		e.frozen = false
		e.said()
		w.wish(func(s *guest.Spec) { s.Power, s.Boots = guest.On, s.Boots+1 })
		w.expect(w.settle(), guest.Running)
		if s := e.said(); s != want {
			t.Errorf("disk written %v: it went on by %q, want %q", written, s, want)
		}
		w.memory(false)
	}
}

// TestAStartThatNobodySaid: the daemon died after the keeper had started the
// guest. The next one takes it for started, and does not boot it again.
func TestAStartThatNobodySaid(t *testing.T) {
	w, e := newSaver(t)
	w.wish(func(s *guest.Spec) { s.Power = guest.Saved })
	w.settle()
	w.expect(w.settle(), guest.Placed)
	dir := e.shelf.Path(w.id)
	if err := os.Rename(filepath.Join(dir, memoryDir), filepath.Join(dir, memoryUsed)); err != nil {
		t.Fatal(err)
	}
	w.wish(func(s *guest.Spec) { s.Power, s.Boots = guest.On, s.Boots+1 })
	held, err := w.k.Start(t.Context(), w.id, keeper.Program{})
	if err != nil {
		t.Fatal(err)
	}
	e.frozen = false
	e.said()
	s := w.settle()
	w.expect(s, guest.Running)
	if said := e.said(); said != "renew" || s.Pid != held.State().Pid || s.Boots != 2 || w.e.asked != 0 {
		t.Errorf("status %+v after: %q", s, said)
	}
	w.memory(false)
}

// TestASaveIsTakenUpByTheNextDaemon: the memory is there, the guest stands still.
func TestASaveIsTakenUpByTheNextDaemon(t *testing.T) {
	w, e := newSaver(t)
	e.frozen = true
	if err := os.Mkdir(filepath.Join(e.shelf.Path(w.id), memoryDir), 0o700); err != nil {
		t.Fatal(err)
	}
	w.wish(func(s *guest.Spec) { s.Power = guest.Saved })
	w.settle()
	s := w.settle()
	w.expect(s, guest.Placed)
	if said := e.said(); !s.Saved || strings.Contains(said, "save") {
		t.Errorf("status %+v after: %s", s, said)
	}
	w.memory(true)
}

// another is a second guest, which is to be a clone.
func (w *world) another(of guest.CloneOf) string {
	w.t.Helper()
	id := w.further("clone", of)
	w.place(id, 1)
	return id
}

// further is another clone, which has no place yet.
func (w *world) further(name string, of guest.CloneOf) string {
	w.t.Helper()
	rec, err := w.r.Tables.Guests.Create(w.t.Context(), name, guest.Spec{Model: guest.OS, Pool: "default", Power: guest.On, Boots: 1, Clone: &of})
	if err != nil {
		w.t.Fatal(err)
	}
	return rec.ID
}

func (w *world) place(id string, slot int) {
	w.t.Helper()
	if _, err := w.r.Tables.Holders.Create(w.t.Context(), id, guest.Holder{Host: "h", Slot: slot}, store.WithID(id)); err != nil {
		w.t.Fatal(err)
	}
}

// as lets f work on another guest.
func (w *world) as(id string, f func()) {
	mine := w.id
	w.id = id
	f()
	w.id = mine
}

func TestClone(t *testing.T) {
	w, e := newSaver(t)
	p := e.shelf
	for _, name := range []string{"upper/etc/machine-id", "upper/etc/kept", "tpm/tpm2-00.permall"} {
		path := filepath.Join(p.Path(w.id), name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("x"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.r.TakeSnapshot(t.Context(), w.id, "s", true); err != nil {
		t.Fatal(err)
	}
	w.put("second")
	e.said()
	id := w.another(guest.CloneOf{Guest: w.id})
	w.as(id, func() { w.expect(w.settle(), guest.Running) })
	if s := e.said(); s != "quiesce pause resume release start:." {
		t.Errorf("it was cloned by: %s", s)
	}
	w.holds(id, "second")
	if exists(filepath.Join(p.Path(id), "upper/etc/machine-id")) || !exists(filepath.Join(p.Path(id), "upper/etc/kept")) || !exists(filepath.Join(p.Path(w.id), "upper/etc/machine-id")) {
		t.Error("the clone is not made a guest of its own, or more than that was taken away")
	}
	if exists(engine.TPMState(p.Path(id))) || !exists(engine.TPMState(p.Path(w.id))) {
		t.Error("the clone has the other's security module, or the other has none any more")
	}
}

func TestCloneOfARunningGuestGoesOn(t *testing.T) {
	w, e := newSaver(t)
	id := w.another(guest.CloneOf{Guest: w.id, Memory: true})
	w.as(id, func() { w.expect(w.settle(), guest.Running); w.memory(false) })
	if s := e.said(); s != "pause save resume start:memory.used renew" {
		t.Errorf("it was cloned by: %s", s)
	}
	w.memory(false)
	if exists(filepath.Join(e.shelf.Path(id), copyMark)) {
		t.Error("it counts as a copy for ever")
	}
}

// TestCopiesOfOneMoment: guests that were asked for together are copies of one
// moment. None is made before all have a place, and none that is not wanted any
// more.
func TestCopiesOfOneMoment(t *testing.T) {
	w, e := newSaver(t)
	of := guest.CloneOf{Guest: w.id, Memory: true, Group: "g"}
	first, second := w.another(of), w.further("second", of)
	gone := w.further("gone", of)
	w.place(gone, 3)
	if _, err := w.r.Tables.Guests.Update(t.Context(), "gone", func(r *tables.GuestRecord) error { r.Deleting = &w.now; return nil }); err != nil {
		t.Fatal(err)
	}
	other := w.further("other", guest.CloneOf{Guest: w.id, Memory: true, Group: "another"})
	w.place(other, 4)
	w.as(first, func() {
		if wait, err := w.pass(); wait != claimAgain || err != nil {
			t.Errorf("without a place for all: %v, %v", wait, err)
		}
	})
	if s := e.said(); s != "" {
		t.Errorf("without a place for all: %s", s)
	}
	w.place(second, 2)
	w.as(second, func() { w.expect(w.settle(), guest.Running) })
	if s := e.said(); s != "pause save resume start:memory.used renew" {
		t.Errorf("the second was made by: %s", s)
	}
	if exists(e.shelf.Path(gone)) || exists(e.shelf.Path(other)) {
		t.Error("a layer was made that nobody wants, or that belongs to others")
	}
	w.as(first, func() { w.expect(w.settle(), guest.Running); w.memory(false) })
	if s := e.said(); s != "start:memory.used renew" {
		t.Errorf("the first was made by: %s", s)
	}
}

// TestACopyThatTakesNoIdentityBoots: it is ended at once, and what makes the
// other a guest of its own is replaced before it boots.
func TestACopyThatTakesNoIdentityBoots(t *testing.T) {
	w, e := newSaver(t)
	ssh := func(id string) string { return filepath.Join(e.shelf.Path(id), "upper/etc/ssh/ssh_host_ed25519_key") }
	if err := errors.Join(os.MkdirAll(filepath.Dir(ssh(w.id)), 0o755), os.WriteFile(ssh(w.id), []byte("the other's"), 0o600)); err != nil {
		t.Fatal(err)
	}
	e.deaf = &errs.Error{Kind: errs.Unavailable, Msg: "its agent does not answer"}
	id := w.another(guest.CloneOf{Guest: w.id, Memory: true})
	w.as(id, func() {
		if _, err := w.pass(); err == nil || e.killed != 1 {
			t.Fatalf("%v, killed %d", err, e.killed)
		}
		w.settle()
		w.expect(w.settle(), guest.Running)
		w.memory(false)
	})
	if said := e.said(); !strings.HasSuffix(said, "renew resume start:.") {
		t.Errorf("it came by: %s", said)
	}
	if key, err := os.ReadFile(ssh(id)); err != nil || strings.Contains(string(key), "other's") {
		t.Errorf("its key is %q, %v", key, err)
	}
	if key, err := os.ReadFile(ssh(w.id)); err != nil || string(key) != "the other's" {
		t.Errorf("the other's key is %q, %v", key, err)
	}
	if exists(filepath.Join(e.shelf.Path(id), copyMark)) {
		t.Error("it counts as a copy for ever")
	}
}

func TestCloneOfASnapshot(t *testing.T) {
	w, e := newSaver(t)
	if _, err := w.r.TakeSnapshot(t.Context(), w.id, "s", true); err != nil {
		t.Fatal(err)
	}
	w.put("second")
	e.said()
	id := w.another(guest.CloneOf{Guest: w.id, Snapshot: "s", Memory: true})
	w.as(id, func() { w.expect(w.settle(), guest.Running) })
	w.holds(id, "first")
	if s := e.said(); s != "start:memory.used renew" {
		t.Errorf("it was cloned by: %s", s)
	}
}

func TestOnlyOneWorksOnAGuest(t *testing.T) {
	w, _ := newSaver(t)
	if !w.r.claim(w.id) || w.r.claim(w.id) {
		t.Fatal("two have it")
	}
	if wait, err := w.pass(); err != nil || wait == 0 {
		t.Errorf("the reconciler did not wait: %v, %v", wait, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.r.TakeSnapshot(ctx, w.id, "s", false); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	w.r.unclaim(w.id)
	w.expect(w.settle(), guest.Running)
}
