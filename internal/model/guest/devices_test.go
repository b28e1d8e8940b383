package guest

import (
	"reflect"
	"slices"
	"testing"
)

func TestPlugs(t *testing.T) {
	a, b, cd, other := FurtherDisk{Name: "a", Size: 1}, FurtherDisk{Name: "b", Size: 2}, FurtherDisk{Name: "cd", Disc: "/x.iso"}, FurtherDisk{Name: "cd", Disc: "/y.iso"}
	larger, first := FurtherDisk{Name: "a", Size: 9}, FurtherDisk{Name: "b", Size: 2, Boot: 1}
	n0, n1, moved := NIC{Name: "eth0", Network: "x"}, NIC{Name: "eth1", Network: "y"}, NIC{Name: "eth1", Network: "z"}
	for _, c := range []struct {
		name    string
		want    Devices
		have    Devices
		plugs   Plugs
		pending []string
	}{
		{"nothing", Devices{}, Devices{}, Plugs{}, nil},
		{"the same", Devices{Disks: []FurtherDisk{a, cd}, NICs: []NIC{n0}}, Devices{Disks: []FurtherDisk{cd, a}, NICs: []NIC{n0}}, Plugs{}, nil},
		{"comes", Devices{Disks: []FurtherDisk{a, b}, NICs: []NIC{n0, n1}}, Devices{Disks: []FurtherDisk{a}, NICs: []NIC{n0}},
			Plugs{InDisks: []FurtherDisk{b}, InNICs: []NIC{n1}}, []string{"disk b comes", "network card eth1 comes"}},
		{"goes", Devices{Disks: []FurtherDisk{a}, NICs: []NIC{n1}}, Devices{Disks: []FurtherDisk{a, b}, NICs: []NIC{n0, n1}},
			Plugs{OutDisks: []string{"b"}, OutNICs: []string{"eth0"}}, []string{"disk b goes", "network card eth0 goes"}},
		{"another disc", Devices{Disks: []FurtherDisk{other}}, Devices{Disks: []FurtherDisk{cd}},
			Plugs{OutDisks: []string{"cd"}, InDisks: []FurtherDisk{other}}, []string{"disk cd goes", "disk cd comes"}},
		{"another network", Devices{NICs: []NIC{moved}}, Devices{NICs: []NIC{n1}},
			Plugs{OutNICs: []string{"eth1"}, InNICs: []NIC{moved}}, []string{"network card eth1 goes", "network card eth1 comes"}},
		{"larger, boots first: with the next start", Devices{Disks: []FurtherDisk{larger, first}}, Devices{Disks: []FurtherDisk{a, b}},
			Plugs{}, []string{"disk a changes", "disk b changes"}},
		{"may have come, and is wanted", Devices{Disks: []FurtherDisk{a}, NICs: []NIC{n0}}, Devices{Disks: []FurtherDisk{a}, NICs: []NIC{n0}, Coming: []string{"disk a", "nic eth0"}},
			Plugs{InDisks: []FurtherDisk{a}, InNICs: []NIC{n0}}, []string{"disk a comes", "network card eth0 comes"}},
		{"may have come, and is not wanted any more", Devices{}, Devices{Disks: []FurtherDisk{a}, NICs: []NIC{n0}, Coming: []string{"disk a", "nic eth0"}},
			Plugs{OutDisks: []string{"a"}, OutNICs: []string{"eth0"}}, []string{"disk a goes", "network card eth0 goes"}},
		{"another may have come", Devices{Disks: []FurtherDisk{other}}, Devices{Disks: []FurtherDisk{cd}, Coming: []string{"disk cd"}},
			Plugs{OutDisks: []string{"cd"}, InDisks: []FurtherDisk{other}}, []string{"disk cd goes", "disk cd comes"}},
	} {
		s := Spec{Disks: c.want.Disks, NICs: c.want.NICs}
		if got := s.Plugs(&c.have); !reflect.DeepEqual(got, c.plugs) {
			t.Errorf("%s: plugs %+v, want %+v", c.name, got, c.plugs)
		}
		if got := s.Pending(&c.have); !slices.Equal(got, c.pending) {
			t.Errorf("%s: pending %q, want %q", c.name, got, c.pending)
		}
	}
}

// TestDevicesAreExpected follows what a guest has while it is given more.
func TestDevicesAreExpected(t *testing.T) {
	a, again := FurtherDisk{Name: "a", Size: 1}, FurtherDisk{Name: "a", Disc: "/x.iso"}
	n0, n1 := NIC{Name: "eth0"}, NIC{Name: "eth1"}
	have := Devices{Disks: []FurtherDisk{a}, NICs: []NIC{n0}}
	was := have.Clone()
	have.Expect(Plugs{InDisks: []FurtherDisk{again}, InNICs: []NIC{n1}})
	if want := (Devices{Disks: []FurtherDisk{again}, NICs: []NIC{n0, n1}, Coming: []string{"disk a", "nic eth1"}}); !reflect.DeepEqual(have, want) {
		t.Errorf("expected: %+v, want %+v", have, want)
	}
	have.CameDisk("a")
	have.GoneNIC("eth1")
	if want := (Devices{Disks: []FurtherDisk{again}, NICs: []NIC{n0}, Coming: []string{}}); !reflect.DeepEqual(have, want) {
		t.Errorf("afterwards: %+v, want %+v", have, want)
	}
	if !reflect.DeepEqual(*was, Devices{Disks: []FurtherDisk{a}, NICs: []NIC{n0}}) {
		t.Errorf("the copy changed: %+v", was)
	}
}

func TestUnknownDevicesAreLeftAlone(t *testing.T) {
	s := Spec{Disks: []FurtherDisk{{Name: "a"}}}
	if !s.Plugs(nil).Empty() || s.Pending(nil) != nil {
		t.Error("what a run has is not known, and it is changed")
	}
}

func TestCardsKeepTheirNumbers(t *testing.T) {
	for i := range 12 {
		if got := (NIC{Name: NICName(i)}).Number(); got != i {
			t.Errorf("card %d is number %d", i, got)
		}
	}
}

func TestPickCPU(t *testing.T) {
	at := func(n int) *int { return &n }
	full := slices.Repeat([]int{0, 1}, MostPins)
	for _, c := range []struct {
		name       string
		host, pins []int
		last       *int
		want       int
		ok         bool
	}{
		{"the first", []int{0, 1}, nil, nil, 0, true},
		{"the emptier", []int{0, 1}, []int{0}, nil, 1, true},
		{"where it was", []int{0, 1, 2}, []int{0}, at(2), 2, true},
		{"not where it was if others are emptier", []int{0, 1}, []int{1}, at(1), 0, true},
		{"where it was is gone", []int{2, 3}, nil, at(7), 2, true},
		{"only what the host may use", []int{5, 9}, []int{5, 0, 0}, nil, 9, true},
		{"full", []int{0, 1}, full, nil, 0, false},
		{"one processor: nothing to choose", []int{0}, nil, nil, 0, false},
	} {
		got, ok := PickCPU(c.host, c.pins, c.last)
		if ok != c.ok || ok && got != c.want {
			t.Errorf("%s: %d, %v", c.name, got, ok)
		}
	}
	for cpus, want := range map[float64]bool{0: false, 0.5: true, 1: true, 1.5: false, 2: false} {
		if got := (Spec{CPUs: cpus}).Single(); got != want {
			t.Errorf("%v processors: single is %v", cpus, got)
		}
	}
}
