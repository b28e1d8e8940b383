package oslevel

import (
	"net/netip"
	"strings"
	"testing"

	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// TestStart looks at a guest from inside.
func TestStart(t *testing.T) {
	r := newRig(t)
	out := r.script(`echo id=$(id -u) host=$(hostname) tty=$(tty) map=$(tr -s ' ' : </proc/self/uid_map)
		echo init=$(cat /proc/1/comm) group=$(grep ^0: /proc/1/cgroup) container=$container
		stat -c '%n %u:%g %a' /dev/console /dev/null /run /dev/shm / /etc/hostname
		touch /new && stat -c '%n %u:%g' /new; ip -o addr show lo; cat /etc/hostname /etc/resolv.conf`,
		func(_ *guest.Guest, p *engine.Parts) { p.DNS = []netip.Addr{netip.MustParseAddr("10.0.0.1")} })
	for _, want := range []string{
		"id=0 host=guest1 tty=/dev/console map=:0:15", ":65536", "init=sh group=0::/ container=lodge",
		"/dev/console 0:5 620", "/dev/null 0:0 666", "/run 0:0 755", "/dev/shm 0:0 1777", "/ 0:0 755", "/etc/hostname 0:0 644",
		"/new 0:0", "127.0.0.1/8", "guest1\r\n# made by lodge", "nameserver 10.0.0.1", "search lodge.internal",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// TestStartFails checks that a guest without a runnable init is refused while
// it starts, in words.
func TestStartFails(t *testing.T) {
	r := newRig(t)
	for want, command := range map[string][]string{
		"run nothing-there in the guest: no such file or directory": {"nothing-there"},
		"run /etc/passwd in the guest: permission denied":           {"/etc/passwd"},
	} {
		g, p := r.guest(func(g *guest.Guest, _ *engine.Parts) { g.Spec.Command = command })
		prog, err := r.engine.Program(g, p)
		if err != nil {
			t.Fatal(err)
		}
		d, err := keep(prog)
		if err == nil {
			d.end()
			t.Fatalf("%v: it runs", command)
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", command, err, want)
		}
	}
}
