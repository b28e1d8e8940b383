package clitest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"lodge/api"
)

func (s *Server) version(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, 200, api.Version{Version: "0.0-test", API: "v1"})
}

func (s *Server) host(w http.ResponseWriter, _ *http.Request) error {
	return reply(w, 200, api.Host{Name: "h1", CPUs: 2, MemoryBytes: 8 << 30, Engines: []api.Engine{{Name: "oslevel", Model: "os", Usable: true}}})
}

// doctor finds a fault that is there until it is cured.
func (s *Server) doctor(w http.ResponseWriter, r *http.Request) error {
	fault := api.Check{Name: "inotify instances", Group: "limits", State: "fault", Found: "128", Cause: "systemd fails in the 20th guest", Fix: "sysctl fs.inotify.max_user_instances=8192"}
	if r.URL.Query().Get("fix") == "true" {
		fault.Fixed, fault.Before, fault.Found = true, "128", "8192"
	}
	return reply(w, 200, []api.Check{{Name: "overlay", Group: "kernel", State: "ok", Found: "there"}, fault})
}

func (s *Server) listGuests(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []api.Guest{}
	for _, g := range s.guests {
		fits := true
		for _, l := range r.URL.Query()["label"] {
			k, v, _ := strings.Cut(l, "=")
			fits = fits && g.Labels[k] == v
		}
		if fits {
			all = append(all, *g)
		}
	}
	slices.SortFunc(all, func(a, b api.Guest) int { return strings.Compare(a.Name, b.Name) })
	w.Header().Set("ETag", strconv.Quote(strconv.FormatInt(s.rev, 10)))
	return reply(w, 200, all)
}

func (s *Server) createGuest(w http.ResponseWriter, r *http.Request) error {
	var ask api.GuestCreate
	if err := decode(r, &ask); err != nil {
		return err
	}
	names := []string{ask.Name}
	if ask.Count > 0 {
		names = nil
		for i := range ask.Count {
			names = append(names, fmt.Sprintf("%s-%d", ask.Name, i+1))
		}
	}
	var subjects []string
	s.mu.Lock()
	for _, n := range names {
		if err := s.admit(n, ask.GuestSpec); err != nil {
			s.mu.Unlock()
			return err
		}
		subjects = append(subjects, "guest/"+n)
	}
	for _, n := range names {
		g := ask.GuestSpec
		s.guests[n] = record(n, g)
	}
	s.mu.Unlock()
	return s.operate(w, r, "guest.create", subjects, func() *api.Problem {
		for _, n := range names {
			if !ask.Start {
				continue
			}
			if p := s.power(n, "running"); p != nil {
				return p
			}
		}
		return nil
	})
}

func (s *Server) admit(name string, g api.GuestSpec) error {
	if strings.ContainsAny(name, "_/ ") {
		return &api.Error{Kind: api.KindInvalid, Field: "name", Detail: strconv.Quote(name) + " is not a host name", Hint: "use a-z, 0-9 and -"}
	}
	if _, ok := s.images[g.Image]; !ok {
		return &api.Error{Kind: api.KindNotFound, Ref: "image/" + g.Image, Field: "image", Detail: "does not exist", Hint: "lodge image build " + g.Image}
	}
	if _, ok := s.kernels["linux/debian-12"]; g.Model == "vm" && !ok {
		return &api.Error{Kind: api.KindNotFound, Ref: "kernel/linux/debian-12", Field: "kernel", Detail: "is not on this host", Hint: "lodge kernel build linux/debian-12"}
	}
	if _, ok := s.guests[name]; ok {
		return &api.Error{Kind: api.KindExists, Ref: "guest/" + name, Detail: "exists already"}
	}
	if g.MemoryBytes != nil && *g.MemoryBytes == 0 {
		return &api.Error{Kind: api.KindInvalid, Field: "memory_bytes", Detail: "0 is too little", Hint: "at least 8MiB"}
	}
	return nil
}

func or[T any](p *T, v T) T {
	if p != nil {
		return *p
	}
	return v
}

func record(name string, g api.GuestSpec) *api.Guest {
	v := &api.Guest{
		Name: name, ID: "g-" + name, Model: "os", Image: g.Image, Phase: "stopped", Wanted: "off", Addresses: []string{},
		CPUs: or(g.CPUs, 1), CPUWeight: or(g.CPUWeight, 100), MemoryBytes: or(g.MemoryBytes, 512<<20), DiskBytes: or(g.DiskBytes, 10<<30),
		SwapBytes: or(g.SwapBytes, 0), Processes: or(g.Processes, 4096), Pool: "default", NICs: []api.NIC{}, Command: g.Command, Env: g.Env,
		CloudInit: g.UserData != "", Restart: g.Restart, Ephemeral: g.Ephemeral, StopTimeout: or(g.StopTimeout, 30), Labels: g.Labels,
		Publish: g.Publish, Host: "h1", Created: time.Now(),
		Asked: g.Engine, Machine: g.Machine, Firmware: g.Firmware, TPM: g.TPM, Kernel: g.Kernel, CPUModel: g.CPUModel, Disks: g.Disks,
	}
	if g.Model != "" {
		v.Model = g.Model
	}
	if g.Autostart != nil {
		v.Autostart = *g.Autostart
	}
	return v
}

// power changes a guest's phase. One called "full…" has no space to start, and
// one whose command is "exit N" has ended at once.
func (s *Server) power(name, phase string) *api.Problem {
	s.mu.Lock()
	g, ok := s.guests[name]
	if !ok {
		s.mu.Unlock()
		return &api.Problem{Code: api.KindNotFound, Message: "does not exist"}
	}
	if strings.HasPrefix(name, "full") && phase == "running" {
		g.Problem = &api.Problem{Code: "no-space", Message: "the pool default is full", Hint: "remove something", Since: time.Now(), Attempts: 1}
		s.mu.Unlock()
		return g.Problem
	}
	g.Phase, g.Addresses = phase, []string{}
	if phase == "running" {
		g.Addresses = []string{"10.67.0.2", "fd00::2"}
	}
	if len(g.Command) == 2 && g.Command[0] == "exit" && phase == "running" {
		code, _ := strconv.Atoi(g.Command[1])
		g.Phase, g.Exit = "stopped", &api.Exit{Code: code, At: time.Now()}
	}
	s.mu.Unlock()
	s.publish(api.Event{Type: "progress", Kind: "guest", Name: name, Progress: &api.Progress{Step: "preparing", Done: 1, Total: 2}})
	s.publish(api.Event{Type: "changed", Kind: "guest", Name: name, Message: phase})
	return nil
}

func (s *Server) getGuest(w http.ResponseWriter, r *http.Request) error {
	return show(s, w, r, "guest", s.guests)
}

func (s *Server) guest(r *http.Request) (*api.Guest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.guests[r.PathValue("name")]
	if !ok {
		return nil, missing("guest", r.PathValue("name"))
	}
	return g, nil
}

func (s *Server) patchGuest(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	var p api.GuestPatch
	if err := decode(r, &p); err != nil {
		return err
	}
	s.mu.Lock()
	g.CPUs, g.CPUWeight = or(p.CPUs, g.CPUs), or(p.CPUWeight, g.CPUWeight)
	g.MemoryBytes, g.SwapBytes, g.DiskBytes = or(p.MemoryBytes, g.MemoryBytes), or(p.SwapBytes, g.SwapBytes), or(p.DiskBytes, g.DiskBytes)
	g.Env, g.Labels, g.Publish = or(p.Env, g.Env), or(p.Labels, g.Labels), or(p.Publish, g.Publish)
	g.Restart, g.Autostart, g.StopTimeout = or(p.Restart, g.Restart), or(p.Autostart, g.Autostart), or(p.StopTimeout, g.StopTimeout)
	s.mu.Unlock()
	return s.operate(w, r, "guest.set", []string{"guest/" + g.Name}, nil)
}

func (s *Server) deleteGuest(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	if g.Phase == "running" && r.URL.Query().Get("force") != "true" {
		return &api.Error{Kind: api.KindConflict, Ref: "guest/" + g.Name, Detail: "is running", Hint: "stop it first, or use --force"}
	}
	return remove(s, w, r, "guest", s.guests)
}

func (s *Server) guestVerb(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	subjects := []string{"guest/" + g.Name}
	phase := map[string]string{"start": "running", "stop": "stopped", "restart": "running", "pause": "paused", "resume": "running"}[r.PathValue("verb")]
	switch {
	case phase != "":
		return s.operate(w, r, "guest."+r.PathValue("verb"), subjects, func() *api.Problem { return s.power(g.Name, phase) })
	case r.PathValue("verb") == "rename":
		var to api.Rename
		if err := decode(r, &to); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.guests, g.Name)
		g.Name = to.Name
		s.guests[g.Name] = g
		s.mu.Unlock()
		return s.operate(w, r, "guest.rename", subjects, nil)
	}
	return s.deviceVerb(w, r, g, subjects)
}

// deviceVerb attaches disks and network cards. A running guest called "fixed…"
// gets them with its next start.
func (s *Server) deviceVerb(w http.ResponseWriter, r *http.Request, g *api.Guest, subjects []string) error {
	var what string
	switch r.PathValue("verb") {
	case "disks":
		var d api.Disk
		if err := decode(r, &d); err != nil {
			return err
		}
		s.mu.Lock()
		g.Disks = append(g.Disks, d)
		s.mu.Unlock()
		what = "disk " + d.Name
	case "nics":
		var n api.NICAttach
		if err := decode(r, &n); err != nil {
			return err
		}
		s.mu.Lock()
		g.NICs = append(g.NICs, api.NIC{Name: fmt.Sprintf("eth%d", len(g.NICs)), Network: n.Network})
		s.mu.Unlock()
		what = "network card"
	default:
		return missing("route", r.URL.Path)
	}
	if strings.HasPrefix(g.Name, "fixed") {
		g.Pending = append(g.Pending, what+" comes")
	}
	return s.operate(w, r, "guest.attach", subjects, nil)
}

func (s *Server) detach(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	what := r.PathValue("what")
	s.mu.Lock()
	disks, nics := len(g.Disks), len(g.NICs)
	g.Disks = slices.DeleteFunc(g.Disks, func(d api.Disk) bool { return d.Name == what })
	g.NICs = slices.DeleteFunc(g.NICs, func(n api.NIC) bool { return n.Name == what })
	gone := len(g.Disks) < disks || len(g.NICs) < nics
	s.mu.Unlock()
	if !gone {
		return &api.Error{Kind: api.KindNotFound, Ref: "guest/" + g.Name, Detail: "has no " + what}
	}
	return s.operate(w, r, "guest.detach", []string{"guest/" + g.Name}, nil)
}

func usageOf(g *api.Guest) api.Usage {
	now := time.Now()
	// Half a processor, whenever it is asked.
	return api.Usage{Name: g.Name, At: now, CPUSeconds: float64(now.UnixMicro()) / 2e6, MemoryBytes: 64 << 20, MemoryLimitBytes: g.MemoryBytes, Processes: 7}
}

func (s *Server) guestUsage(w http.ResponseWriter, r *http.Request) error {
	g, err := s.guest(r)
	if err != nil {
		return err
	}
	return reply(w, 200, usageOf(g))
}

func (s *Server) usage(w http.ResponseWriter, _ *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []api.Usage{}
	for _, g := range s.guests {
		if g.Phase == "running" {
			all = append(all, usageOf(g))
		}
	}
	return reply(w, 200, all)
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.guest(r); err != nil {
		return err
	}
	lines := []string{"one", "two", "three"}
	if n, err := strconv.Atoi(r.URL.Query().Get("tail")); err == nil {
		lines = lines[max(0, len(lines)-n):]
	}
	for _, l := range lines {
		fmt.Fprintln(w, l)
	}
	return nil
}
