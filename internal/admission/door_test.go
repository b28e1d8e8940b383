package admission

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/network"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// door is one over a memory store with a network, a pool and an image.
func door(t *testing.T, prefix string) *Door {
	t.Helper()
	s := store.NewMemory()
	t.Cleanup(func() { s.Close() })
	tb := tables.Open(s)
	d := New(Options{
		Store: s, Tables: tb, Host: Host{CPUs: 2, Memory: 8 << 30},
		Engine: func(m guest.Model, name string) (Engine, error) {
			if m != guest.OS {
				return Engine{}, &errs.Error{Kind: errs.Unsupported, Field: "model", Msg: string(m) + " cannot run here: there is no /dev/kvm", Hint: "turn on virtualization"}
			}
			return Engine{Name: "toy", Model: guest.OS, Form: guest.Tree, Pause: true}, nil
		},
		PoolDrivers:    func() []Driver { return []Driver{{Name: "dir"}, {Name: "btrfs", Missing: "no btrfs"}} },
		NetworkDrivers: func() []Driver { return []Driver{{Name: "bridge"}} },
		CheckSource: func(s image.Spec) error {
			if s.Source != "debian" && s.Source != "busybox" && s.Source != "import" {
				return errs.Bad("name", "nothing makes "+s.Source, "")
			}
			return nil
		},
		PortFree: func(_ string, _ netip.Addr, port uint16) error {
			if port == 22 {
				return errors.New("address already in use")
			}
			return nil
		},
		HostPrefixes: func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("10.68.0.0/16")} },
	})
	ctx := context.Background()
	must(t)(d.CreateNetwork(ctx, "user", NetworkWish{Name: "default", IPv4: prefix, IPv6: "fd00:1::/64"}))
	must(t)(d.CreatePool(ctx, "user", "default", pool.Spec{Driver: "dir"}))
	must(t)(d.BuildImage(ctx, "user", ImageWish{Name: "debian/12"}))
	ready(t, d, "debian/12")
	return d
}

func ready(t *testing.T, d *Door, name string) {
	t.Helper()
	r, err := d.Tables.Images.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Tables.Images.SetStatus(t.Context(), r.ID, func(s *image.Status) error {
		s.Wish, s.Generation, s.Digest = r.Spec.Wish, r.Generation, "sha256:"+name
		s.Info = image.Info{Init: []string{"/sbin/init"}, CloudInit: name == "debian/12"}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T) func(Operation, error) Operation {
	return func(op Operation, err error) Operation {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return op
	}
}

func get(t *testing.T, d *Door, name string) tables.GuestRecord {
	t.Helper()
	r, err := d.Tables.Guests.Get(name)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// rest is what the guests reconciler would write of a guest in phase.
func rest(t *testing.T, d *Door, name string, phase guest.Phase) {
	t.Helper()
	r := get(t, d, name)
	if _, err := d.Tables.Guests.SetStatus(t.Context(), r.ID, func(s *guest.Status) error {
		s.Phase, s.Boots, s.Generation = phase, r.Spec.Boots, r.Generation
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestCreateGuest(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	op := must(t)(d.CreateGuests(t.Context(), "user", GuestWish{
		Name: "web1", Image: "debian/12", Start: true,
		Patch: Patch{Publish: ptr([]string{"8080:80", "[::1]:53:5353/udp"}), Labels: ptr(map[string]string{"tier": "web"})},
	}))
	g := get(t, d, "web1")
	if g.Spec.Power != guest.On || g.Spec.Boots != 1 || g.Spec.Memory != defaultMemory || g.Spec.Digest != "sha256:debian/12" || g.Labels["tier"] != "web" {
		t.Fatalf("%+v", g)
	}
	n := g.Spec.NICs[0]
	if n.IPv4 != "10.67.0.2/16" || n.IPv6 != "fd00:1::2/64" || !strings.HasPrefix(n.MAC, "02:") || n.Name != "eth0" {
		t.Fatalf("%+v", n)
	}
	for _, l := range []string{"default/10.67.0.2", "default/fd00:1::2"} {
		if r, err := d.Tables.Leases.Get(l); err != nil || r.Spec.Guest != g.ID {
			t.Fatal(l, r, err)
		}
	}
	if got := d.PublishOf(g.ID); fmt.Sprint(got) != "[8080:80/tcp [::1]:53:5353/udp]" {
		t.Fatal(got)
	}
	if s := op.Spec.Subjects; len(s) != 1 || s[0].ID != g.ID || s[0].Generation != 1 || op.Spec.Verb != "guest.create" {
		t.Fatalf("%+v", op)
	}
}

func TestCreateManyGetDifferentAddresses(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	op := must(t)(d.CreateGuests(t.Context(), "user", GuestWish{Name: "g", Image: "debian/12", Count: 250}))
	if len(op.Spec.Subjects) != 250 || d.Tables.Guests.Len() != 250 {
		t.Fatal(len(op.Spec.Subjects), d.Tables.Guests.Len())
	}
	seen := map[string]string{}
	for _, g := range d.Tables.Guests.List() {
		n := g.Spec.NICs[0]
		for _, a := range []string{n.IPv4, n.IPv6, n.MAC} {
			if seen[a] != "" {
				t.Fatalf("%s and %s share %s", seen[a], g.Name, a)
			}
			seen[a] = g.Name
		}
	}
	get(t, d, "g-1")
	get(t, d, "g-250")
}

// A network that is full leaves nothing of the guests that had room.
func TestFullNetwork(t *testing.T) {
	d := door(t, "10.67.0.0/29")
	_, err := d.CreateGuests(t.Context(), "user", GuestWish{Name: "g", Image: "debian/12", Count: 6})
	if !errs.Is(err, errs.NoSpace) || d.Tables.Guests.Len() != 0 || d.Tables.Leases.Len() != 0 {
		t.Fatal(err, d.Tables.Guests.Len(), d.Tables.Leases.Len())
	}
	must(t)(d.CreateGuests(t.Context(), "user", GuestWish{Name: "g", Image: "debian/12", Count: 5}))
	last := get(t, d, "g-5").Spec.NICs[0].IPv4
	if d.Tables.Leases.Len() != 10 || last == "10.67.0.7/29" {
		t.Fatal(d.Tables.Leases.Len(), last)
	}
	// An address whose lease is gone is given again.
	l, err := d.Tables.Leases.Get("default/10.67.0.4")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"default/10.67.0.4", "default/fd00:1::4"} {
		r, _ := d.Tables.Leases.Get(n)
		if r.Spec.Guest != l.Spec.Guest || d.Tables.Leases.Delete(t.Context(), r.ID) != nil {
			t.Fatal(n)
		}
	}
	must(t)(d.CreateGuests(t.Context(), "user", GuestWish{Name: "again", Image: "debian/12"}))
	if a := get(t, d, "again").Spec.NICs[0].IPv4; a != "10.67.0.4/29" {
		t.Fatal(a)
	}
}

func TestRefusedGuests(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	must(t)(d.CreateGuests(t.Context(), "user", GuestWish{Name: "there", Image: "debian/12", Patch: Patch{Publish: ptr([]string{"80:80"})}}))
	must(t)(d.BuildImage(t.Context(), "user", ImageWish{Name: "debian/13"}))
	must(t)(d.BuildImage(t.Context(), "user", ImageWish{Name: "busybox"}))
	ready(t, d, "busybox")
	ok := func(change func(*GuestWish)) GuestWish {
		w := GuestWish{Name: "web1", Image: "debian/12"}
		change(&w)
		return w
	}
	before := d.Store.Rev()
	for name, c := range map[string]struct {
		wish  GuestWish
		kind  errs.Kind
		field string
	}{
		"no name":          {ok(func(w *GuestWish) { w.Name = "" }), errs.Invalid, "name"},
		"bad name":         {ok(func(w *GuestWish) { w.Name = "Web_1" }), errs.Invalid, "name"},
		"name too long":    {ok(func(w *GuestWish) { w.Name = strings.Repeat("a", 62); w.Count = 10 }), errs.Invalid, "name"},
		"duplicate":        {ok(func(w *GuestWish) { w.Name = "there" }), errs.Exists, "name"},
		"no image":         {ok(func(w *GuestWish) { w.Image = "" }), errs.Invalid, "image"},
		"unknown image":    {ok(func(w *GuestWish) { w.Image = "debian/11" }), errs.NotFound, "image"},
		"bad image":        {ok(func(w *GuestWish) { w.Image = "../etc" }), errs.Invalid, "image"},
		"image on its way": {ok(func(w *GuestWish) { w.Image = "debian/13" }), errs.Busy, "image"},
		"memory 0":         {ok(func(w *GuestWish) { w.Memory = ptr(uint64(0)) }), errs.Invalid, "memory_bytes"},
		"memory small":     {ok(func(w *GuestWish) { w.Memory = ptr(uint64(1 << 20)) }), errs.Invalid, "memory_bytes"},
		"memory large":     {ok(func(w *GuestWish) { w.Memory = ptr(uint64(9 << 30)) }), errs.Invalid, "memory_bytes"},
		"cpus negative":    {ok(func(w *GuestWish) { w.CPUs = ptr(-1.0) }), errs.Invalid, "cpus"},
		"cpus too many":    {ok(func(w *GuestWish) { w.CPUs = ptr(2.5) }), errs.Invalid, "cpus"},
		"cpu weight 0":     {ok(func(w *GuestWish) { w.CPUWeight = ptr(0) }), errs.Invalid, "cpu_weight"},
		"processes":        {ok(func(w *GuestWish) { w.Processes = ptr(int64(-1)) }), errs.Invalid, "processes"},
		"disk small":       {ok(func(w *GuestWish) { w.Disk = ptr(uint64(5)) }), errs.Invalid, "disk_bytes"},
		"restart":          {ok(func(w *GuestWish) { w.Restart = ptr(guest.Restart("often")) }), errs.Invalid, "restart"},
		"env name":         {ok(func(w *GuestWish) { w.Env = ptr(map[string]string{"A=B": ""}) }), errs.Invalid, "env"},
		"empty command":    {ok(func(w *GuestWish) { w.Command = ptr([]string{""}) }), errs.Invalid, "command"},
		"no cloud-init":    {ok(func(w *GuestWish) { w.Image, w.UserData = "busybox", ptr("#cloud-config") }), errs.Invalid, "user_data"},
		"user data":        {ok(func(w *GuestWish) { w.UserData = ptr(strings.Repeat("x", maxUserData+1)) }), errs.Invalid, "user_data"},
		"stop timeout":     {ok(func(w *GuestWish) { w.StopTimeout = ptr(-1) }), errs.Invalid, "stop_timeout"},
		"label":            {ok(func(w *GuestWish) { w.Labels = ptr(map[string]string{"A B": ""}) }), errs.Invalid, "labels"},
		"pool":             {ok(func(w *GuestWish) { w.Pool = "fast" }), errs.NotFound, "pool"},
		"network":          {ok(func(w *GuestWish) { w.Networks = []string{"lan"} }), errs.NotFound, "networks"},
		"network twice":    {ok(func(w *GuestWish) { w.Networks = []string{"default", "default"} }), errs.Invalid, "networks"},
		"vm":               {ok(func(w *GuestWish) { w.Model = guest.VM }), errs.Unsupported, "model"},
		"paravirt":         {ok(func(w *GuestWish) { w.Model = guest.Paravirt }), errs.Unsupported, "model"},
		"model":            {ok(func(w *GuestWish) { w.Model = "wasm" }), errs.Invalid, "model"},
		"publish":          {ok(func(w *GuestWish) { w.Publish = ptr([]string{"80"}) }), errs.Invalid, "publish"},
		"publish taken":    {ok(func(w *GuestWish) { w.Publish = ptr([]string{"127.0.0.1:80:80"}) }), errs.Exists, "publish"},
		"publish in use":   {ok(func(w *GuestWish) { w.Publish = ptr([]string{"22:22"}) }), errs.Conflict, "publish"},
		"publish twice":    {ok(func(w *GuestWish) { w.Publish = ptr([]string{"81:80", "81:81"}) }), errs.Invalid, "publish"},
		"publish many":     {ok(func(w *GuestWish) { w.Count = 2; w.Publish = ptr([]string{"81:80"}) }), errs.Invalid, "publish"},
		"publish nowhere":  {ok(func(w *GuestWish) { w.Networks = []string{"none"}; w.Publish = ptr([]string{"81:80"}) }), errs.Invalid, "publish"},
		"count":            {ok(func(w *GuestWish) { w.Count = 10_001 }), errs.Invalid, "count"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.CreateGuests(t.Context(), "user", c.wish)
			e, ok := errors.AsType[*errs.Error](err)
			if !ok || e.Kind != c.kind || e.Field != c.field || e.Msg == "" {
				t.Fatalf("%#v", err)
			}
		})
	}
	if d.Store.Rev() != before {
		t.Fatal("something was written")
	}
}

func TestVerbs(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	ctx := t.Context()
	must(t)(d.CreateGuests(ctx, "user", GuestWish{Name: "g", Image: "debian/12"}))
	rest(t, d, "g", guest.Placed)
	if _, err := d.PauseGuest(ctx, "user", "g"); !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	must(t)(d.StartGuest(ctx, "user", "g"))
	must(t)(d.StartGuest(ctx, "user", "g")) // the same wish
	if g := get(t, d, "g"); g.Spec.Boots != 1 || g.Spec.Power != guest.On {
		t.Fatalf("%+v", g.Spec)
	}
	rest(t, d, "g", guest.Running)
	if op := must(t)(d.StartGuest(ctx, "user", "g")); op.Spec.Subjects[0].Generation != get(t, d, "g").Status.Generation {
		t.Fatal("starting what runs is a change")
	}
	must(t)(d.PauseGuest(ctx, "user", "g"))
	rest(t, d, "g", guest.Paused)
	must(t)(d.ResumeGuest(ctx, "user", "g"))
	must(t)(d.RestartGuest(ctx, "user", "g", true))
	if g := get(t, d, "g"); g.Spec.Boots != 2 || g.Spec.Power != guest.On || !g.Spec.Force {
		t.Fatalf("%+v", g.Spec)
	}
	rest(t, d, "g", guest.Running)
	if _, err := d.RemoveGuest(ctx, "user", "g", false); !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	must(t)(d.StopGuest(ctx, "user", "g", false, ptr(5)))
	if g := get(t, d, "g"); g.Spec.Power != guest.Off || g.Spec.Force || g.Spec.Within != 5 || g.Spec.StopTimeout == 5 {
		t.Fatalf("%+v", g.Spec)
	}
	must(t)(d.RenameGuest(ctx, "user", "g", "h"))
	if _, err := d.Tables.Guests.Get("g"); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
	rest(t, d, "h", guest.Running)
	op := must(t)(d.RemoveGuest(ctx, "user", "h", true))
	if !op.Spec.Subjects[0].Gone || get(t, d, "h").Deleting == nil || !get(t, d, "h").Spec.Force {
		t.Fatalf("%+v", op)
	}
	if _, err := d.StartGuest(ctx, "user", "h"); !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	must(t)(d.RemoveGuest(ctx, "user", "h", false)) // asking twice is no fault
}

func TestSetGuest(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	ctx := t.Context()
	must(t)(d.CreateGuests(ctx, "user", GuestWish{Name: "g", Image: "debian/12", Patch: Patch{Publish: ptr([]string{"80:80", "81:81"})}}))
	must(t)(d.SetGuest(ctx, "user", "g", Patch{Memory: ptr(uint64(1 << 30)), Publish: ptr([]string{"80:8080", "82:82"})}, 1))
	g := get(t, d, "g")
	if g.Spec.Memory != 1<<30 || g.Generation != 2 {
		t.Fatalf("%+v", g)
	}
	if got := fmt.Sprint(d.PublishOf(g.ID)); got != "[80:8080/tcp 82:82/tcp]" {
		t.Fatal(got)
	}
	if _, err := d.SetGuest(ctx, "user", "g", Patch{Memory: ptr(uint64(2 << 30))}, 1); !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	if _, err := d.SetGuest(ctx, "user", "g", Patch{Memory: ptr(uint64(0))}, 0); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	if _, err := d.SetGuest(ctx, "user", "nobody", Patch{}, 0); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

func TestInUse(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	ctx := t.Context()
	must(t)(d.CreateGuests(ctx, "user", GuestWish{Name: "g", Image: "debian/12"}))
	for name, remove := range map[string]func(context.Context, string, string) (Operation, error){"default": d.RemovePool, "debian/12": d.RemoveImage} {
		if _, err := remove(ctx, "user", name); !errs.Is(err, errs.Conflict) || !strings.Contains(err.Error(), "is used by g") {
			t.Fatal(name, err)
		}
	}
	if _, err := d.RemoveNetwork(ctx, "user", "default"); !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	g := get(t, d, "g")
	if err := d.Tables.Guests.Delete(ctx, g.ID); err != nil {
		t.Fatal(err)
	}
	must(t)(d.RemoveNetwork(ctx, "user", "default"))
	must(t)(d.RemoveImage(ctx, "user", "debian/12"))
	must(t)(d.RemovePool(ctx, "user", "default"))
}

func TestImages(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	ctx := t.Context()
	wish := func() int64 {
		r, err := d.Tables.Images.Get("debian/12")
		if err != nil {
			t.Fatal(err)
		}
		return r.Spec.Wish
	}
	must(t)(d.BuildImage(ctx, "user", ImageWish{Name: "debian/12"}))
	if wish() != 1 {
		t.Fatal("built again without being asked")
	}
	must(t)(d.BuildImage(ctx, "user", ImageWish{Name: "debian/12", Rebuild: true}))
	must(t)(d.BuildImage(ctx, "user", ImageWish{Name: "debian/12", Rebuild: true}))
	if wish() != 2 {
		t.Fatal("two wishes at once are one build", wish())
	}
	if _, err := d.BuildImage(ctx, "user", ImageWish{Name: "debian/13", As: "debian/12"}); !errs.Is(err, errs.Exists) {
		t.Fatal(err)
	}
	if _, err := d.BuildImage(ctx, "user", ImageWish{Name: "beos/5"}); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
	op := must(t)(d.BuildImage(ctx, "user", ImageWish{Name: "debian/12", Variant: image.Minimal}))
	if op.Spec.Subjects[0].Name != "debian/12-minimal" {
		t.Fatal(op.Spec.Subjects)
	}
	if _, err := d.ImportImage(ctx, "user", "debian/12", "import", "aaaaaaaaaaaaaaaa", ""); !errs.Is(err, errs.Exists) {
		t.Fatal(err)
	}
}

func TestNetworks(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	for name, c := range map[string]struct {
		wish  NetworkWish
		field string
	}{
		"public":     {NetworkWish{IPv4: "8.8.8.0/24"}, "ipv4"},
		"host bits":  {NetworkWish{IPv4: "10.9.0.1/24"}, "ipv4"},
		"too small":  {NetworkWish{IPv4: "10.9.0.0/30"}, "ipv4"},
		"overlap":    {NetworkWish{IPv4: "10.67.4.0/24"}, "ipv4"},
		"the host's": {NetworkWish{IPv4: "10.68.4.0/24"}, "ipv4"},
		"v6":         {NetworkWish{IPv6: "10.9.0.0/24"}, "ipv6"},
		"driver":     {NetworkWish{Driver: "token-ring"}, "driver"},
		"domain":     {NetworkWish{Domain: "a..b"}, "domain"},
	} {
		c.wish.Name = "n"
		_, err := d.CreateNetwork(t.Context(), "user", c.wish)
		if e, ok := errors.AsType[*errs.Error](err); !ok || e.Field != c.field {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t)(d.CreateNetwork(t.Context(), "user", NetworkWish{Name: "n", IPv6: "none", NAT: ptr(false)}))
	r, err := d.Tables.Networks.Get("n")
	if err != nil || r.Spec.IPv4.String() != "10.69.0.0/16" || r.Spec.IPv6.IsValid() || r.Spec.NAT {
		t.Fatalf("%+v %v", r.Spec, err)
	}
}

func TestApply(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	ctx := t.Context()
	items := []Item{
		{Forward: &ForwardItem{Guest: "web1", Publish: "8080:80"}},
		{Guest: &GuestItem{GuestWish: GuestWish{Name: "web1", Image: "debian/12", Networks: []string{"lan"}, Patch: Patch{CPUs: ptr(2.0), Env: ptr(map[string]string{"A": "1"})}}}},
		{Network: &NetworkWish{Name: "lan", IPv4: "10.80.0.0/24"}},
	}
	before := d.Store.Rev()
	changes, ops, err := d.Apply(ctx, "user", items, true, nil)
	if err != nil || len(ops) != 0 || len(changes) != 3 || d.Store.Rev() != before {
		t.Fatal(changes, ops, err)
	}
	changes, ops, err = d.Apply(ctx, "user", items, false, nil)
	if err != nil || len(ops) != 3 || changes[1].Action != ActionCreate {
		t.Fatal(changes, ops, err)
	}
	rest(t, d, "web1", guest.Running)
	before = d.Store.Rev()
	changes, ops, err = d.Apply(ctx, "user", items, false, nil)
	if err != nil || len(ops) != 0 || d.Store.Rev() != before {
		t.Fatal(changes, ops, err)
	}
	items[1].Guest.Memory = ptr(uint64(1 << 30))
	items[1].Guest.Power = guest.Off
	changes, ops, err = d.Apply(ctx, "user", items, false, nil)
	if err != nil || len(ops) != 2 || changes[1].Action != ActionChange || len(changes[1].Fields) != 2 || changes[1].Fields[0].Field != "memory_bytes" {
		t.Fatalf("%+v %v %v", changes, ops, err)
	}
	items[1].Guest.Image = "debian/13"
	_, _, err = d.Apply(ctx, "user", items, false, nil)
	if e, ok := errors.AsType[*errs.Error](err); !ok || e.Field != "manifests[1].image" || e.Kind != errs.Conflict {
		t.Fatalf("%#v", err)
	}
	items[1].Guest.Image = "debian/12"
	items[1].Guest.CPUs = ptr(99.0)
	if _, _, err = d.Apply(ctx, "user", items, false, nil); !errs.Is(err, errs.Invalid) {
		t.Fatal(err)
	}
}

// An image of the same file is waited for before the guest that needs it.
func TestApplyWaitsForImages(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	items := []Item{
		{Guest: &GuestItem{GuestWish: GuestWish{Name: "web1", Image: "busybox"}, Power: guest.Held}},
		{Image: &ImageWish{Name: "busybox"}},
	}
	if _, _, err := d.Apply(t.Context(), "user", items, false, nil); !errs.Is(err, errs.Busy) {
		t.Fatal(err)
	}
	waited := 0
	_, ops, err := d.Apply(t.Context(), "user", []Item{items[0], {Image: &ImageWish{Name: "busybox", Rebuild: true}}}, false, func(_ context.Context, op Operation) error {
		waited++
		ready(t, d, op.Spec.Subjects[0].Name)
		return nil
	})
	if err != nil || waited != 1 || len(ops) != 3 || get(t, d, "web1").Spec.Power != guest.Held {
		t.Fatal(waited, len(ops), err)
	}
}

func TestCancel(t *testing.T) {
	d := door(t, "10.67.0.0/16")
	op := must(t)(d.BuildImage(t.Context(), "user", ImageWish{Name: "debian/13"}))
	if op, err := d.Cancel(t.Context(), op.ID); err != nil || !op.Spec.Cancel {
		t.Fatal(op, err)
	}
	if _, err := d.Tables.Operations.SetStatus(t.Context(), op.ID, func(s *operation.Status) error {
		s.State = operation.Cancelled
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Cancel(t.Context(), op.ID); !errs.Is(err, errs.Conflict) {
		t.Fatal(err)
	}
	if _, err := d.Cancel(t.Context(), "nothing"); !errs.Is(err, errs.NotFound) {
		t.Fatal(err)
	}
}

func TestAddressesStayInside(t *testing.T) {
	for _, text := range []string{"10.0.0.0/8", "192.168.1.0/24", "10.1.2.8/29", "fd00::/64", "fd00::/120"} {
		p := netip.MustParsePrefix(text)
		last := at(p, hosts(p)+1)
		if !p.Contains(last.Addr()) || !p.Contains(at(p, 2).Addr()) || at(p, 2).Addr() == network.Gateway(p) {
			t.Errorf("%s: %s to %s", p, at(p, 2), last)
		}
		if p.Addr().Is4() && p.Contains(last.Addr().Next().Next()) {
			t.Errorf("%s: %s is not the last but the broadcast address", p, last)
		}
	}
}

func FuzzParsePublish(f *testing.F) {
	for _, s := range []string{"8080:80", "127.0.0.1:8080:80/udp", "[::1]:1:2", "[::]:1:2", "::1:2:3", "80", "a:b", "1:2/sctp", "0:1", "65536:1", "[fe80::1%eth0]:1:1", "[1.2.3.4]:1:1", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		spec, err := ParsePublish("publish", s)
		if err != nil {
			if !errs.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if spec.Port == 0 || spec.Target == 0 {
			t.Fatalf("%q: %+v", s, spec)
		}
		again, err := ParsePublish("publish", Publish(spec))
		if err != nil || again != spec {
			t.Fatalf("%q: %+v %+v %v", s, spec, again, err)
		}
	})
}

func FuzzNames(f *testing.F) {
	for _, s := range []string{"debian/12", "a", "../x", "a//b", "A", "a/", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckImageName("image", s) == nil && (strings.Contains(s, "..") || s == "" || s[0] == '/' || strings.ContainsAny(s, "\x00 \n")) {
			t.Fatalf("%q", s)
		}
	})
}

func BenchmarkStart(b *testing.B) {
	s := store.NewMemory()
	defer s.Close()
	tb := tables.Open(s)
	d := New(Options{Store: s, Tables: tb, Engine: func(guest.Model, string) (Engine, error) { return Engine{Model: guest.OS}, nil }, Now: time.Now})
	if _, err := tb.Guests.Create(b.Context(), "g", guest.Spec{Model: guest.OS}); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := d.RestartGuest(b.Context(), "user", "g", false); err != nil {
			b.Fatal(err)
		}
	}
}
