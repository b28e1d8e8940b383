package guests

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"lodge/internal/control"
	"lodge/internal/fabric"
	"lodge/internal/model/guest"
	"lodge/internal/model/network"
	"lodge/internal/store/tables"
)

// switchboard is a network that only remembers what is plugged.
type switchboard struct {
	mu    sync.Mutex
	ports map[string]fabric.Port
}

func (s *switchboard) Plug(_ context.Context, p fabric.Port) (fabric.Socket, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports[p.Device] = p
	return fabric.Socket{}, nil
}

func (s *switchboard) Unplug(_ context.Context, device string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, device)
	return nil
}

func (s *switchboard) Ports(prefix string) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for device := range maps.Keys(s.ports) {
		if strings.HasPrefix(device, prefix) {
			all = append(all, device)
		}
	}
	return all
}

func (*switchboard) Forward(context.Context, []fabric.Forward) error { return nil }
func (*switchboard) Device() string                                  { return "br" }
func (*switchboard) Close() error                                    { return nil }

// TestPortsOfADeadDaemon: a daemon plugs a guest's cards and dies before it can
// note that the guest has them. One of them is wanted no more when the next comes,
// another is to be on another network.
func TestPortsOfADeadDaemon(t *testing.T) {
	eth := func(n, on string) guest.NIC {
		return guest.NIC{Name: "eth" + n, Network: on, MAC: "02:00:00:00:00:0" + n}
	}
	w := newWorld(t, guest.Spec{Power: guest.On, Boots: 1, NICs: []guest.NIC{eth("0", "a"), eth("1", "b"), eth("2", "b")}})
	nets := map[string]*switchboard{}
	for _, name := range []string{"a", "b"} {
		if _, err := w.r.Tables.Networks.Create(t.Context(), name, network.Spec{}); err != nil {
			t.Fatal(err)
		}
		nets[name] = &switchboard{ports: map[string]fabric.Port{"lg10n1": {}}} // of another guest
	}
	open := func() {
		w.r.Networks = control.NewHandles[fabric.Fabric](network.Kind)
		for name, n := range nets {
			w.r.Networks.Put(name, n)
		}
	}
	holds := func(when, on string, want ...string) {
		t.Helper()
		if have := slices.Sorted(maps.Keys(nets[on].ports)); !slices.Equal(have, want) {
			t.Errorf("%s network %s holds %v, is to hold %v", when, on, have, want)
		}
	}
	open()
	g, err := w.r.Guest(w.id)
	if err != nil {
		t.Fatal(err)
	}
	if slot := g.Holder.Slot; slot != 0 {
		t.Fatalf("the guest has slot %d", slot)
	}
	if _, err := w.r.attach(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	holds("attached,", "a", "lg0n0", "lg10n1")
	holds("attached,", "b", "lg0n1", "lg0n2", "lg10n1")

	if w.r, err = New(w.r.Options); err != nil {
		t.Fatal(err)
	}
	open()
	w.want(func(s *guest.Spec) { s.NICs = []guest.NIC{eth("0", "a"), eth("2", "a")} })
	w.expect(w.settle(), guest.Running)
	holds("running,", "a", "lg0n0", "lg0n2", "lg10n1")
	holds("running,", "b", "lg10n1")

	nets["b"].ports["lg0n7"] = fabric.Port{} // as if that had happened once more
	w.want(func(s *guest.Spec) { s.Power, s.Force = guest.Off, true })
	w.settle()
	if _, err := w.r.Tables.Guests.Update(t.Context(), "g", func(r *tables.GuestRecord) error { r.Deleting = &w.now; return nil }); err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := w.pass(); err != nil {
			t.Fatal(err)
		}
	}
	holds("removed,", "a", "lg10n1")
	holds("removed,", "b", "lg10n1")
}
