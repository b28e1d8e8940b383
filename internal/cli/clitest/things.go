package clitest

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"lodge/api"
)

func (s *Server) buildImage(w http.ResponseWriter, r *http.Request) error {
	var ask api.ImageBuild
	if err := decode(r, &ask); err != nil {
		return err
	}
	name := ask.Name
	if ask.Variant == "minimal" {
		name += "-minimal"
	}
	if ask.As != "" {
		name = ask.As
	}
	return s.operate(w, r, "image.build", []string{"image/" + name}, func() *api.Problem {
		s.publish(api.Event{Type: "progress", Kind: "image", Name: name, Progress: &api.Progress{Step: "fetching", Done: 1, Total: 2, Unit: "bytes"}})
		s.mu.Lock()
		s.images[name] = &api.Image{Name: name, Ready: true, Source: ask.Name, Variant: ask.Variant, UsedBy: []string{}, SizeBytes: 99 << 20}
		s.mu.Unlock()
		return nil
	})
}

func (s *Server) buildKernel(w http.ResponseWriter, r *http.Request) error {
	var ask api.KernelBuild
	if err := decode(r, &ask); err != nil {
		return err
	}
	return s.operate(w, r, "kernel.build", []string{"kernel/" + ask.Name}, func() *api.Problem {
		kind, _, _ := strings.Cut(ask.Name, "/")
		s.mu.Lock()
		defer s.mu.Unlock()
		k := &api.Kernel{Name: ask.Name, Kind: kind, Ready: true, Version: "7.2.7", From: "a package 7.2", SizeBytes: 16 << 20, Modules: []string{"erofs"}, UsedBy: []string{}}
		if ask.Refresh {
			k.Version = "7.2.8"
		}
		s.kernels[ask.Name] = k
		return nil
	})
}

func (s *Server) importImage(w http.ResponseWriter, r *http.Request) error {
	n, err := io.Copy(io.Discard, r.Body)
	if err != nil {
		return err
	}
	name := r.URL.Query().Get("name")
	s.mu.Lock()
	s.images[name] = &api.Image{Name: name, Ready: true, Source: "import", SizeBytes: uint64(n), UsedBy: []string{}, Description: r.URL.Query().Get("max_size")}
	s.mu.Unlock()
	return s.operate(w, r, "image.import", []string{"image/" + name}, nil)
}

func (s *Server) exportImage(w http.ResponseWriter, r *http.Request) error {
	name := r.URL.Query().Get("name")
	s.mu.Lock()
	_, ok := s.images[name]
	s.mu.Unlock()
	if !ok {
		return missing("image", name)
	}
	_, err := fmt.Fprintf(w, "%s of %s\n", r.URL.Query().Get("format"), name)
	return err
}

func (s *Server) createPool(w http.ResponseWriter, r *http.Request) error {
	var ask api.PoolCreate
	if err := decode(r, &ask); err != nil {
		return err
	}
	s.mu.Lock()
	s.pools[ask.Name] = &api.Pool{Name: ask.Name, Driver: ask.Driver, Source: ask.Source, TotalBytes: ask.SizeBytes, Ready: true, UsedBy: []string{}}
	s.mu.Unlock()
	return s.operate(w, r, "pool.create", []string{"pool/" + ask.Name}, nil)
}

func (s *Server) createNetwork(w http.ResponseWriter, r *http.Request) error {
	var ask api.NetworkCreate
	if err := decode(r, &ask); err != nil {
		return err
	}
	s.mu.Lock()
	s.nets[ask.Name] = &api.Network{Name: ask.Name, Driver: "bridge", IPv4: ask.IPv4, IPv6: ask.IPv6, NAT: or(ask.NAT, true), Ready: true}
	s.mu.Unlock()
	return s.operate(w, r, "network.create", []string{"network/" + ask.Name}, nil)
}

func (s *Server) createForward(w http.ResponseWriter, r *http.Request) error {
	var ask api.ForwardCreate
	if err := decode(r, &ask); err != nil {
		return err
	}
	f := api.Forward{Guest: ask.Guest, Protocol: "tcp", Active: true}
	if _, err := fmt.Sscanf(ask.Publish, "%d:%d", &f.Port, &f.Target); err != nil {
		return &api.Error{Kind: api.KindInvalid, Field: "publish", Detail: "is not HOSTPORT:GUESTPORT"}
	}
	f.Name = fmt.Sprintf("tcp-%d", f.Port)
	s.mu.Lock()
	s.fwds[f.Name] = &f
	s.mu.Unlock()
	return s.operate(w, r, "forward.create", []string{"forward/" + f.Name}, nil)
}

// apply makes the guests that are missing and leaves the rest.
func (s *Server) apply(w http.ResponseWriter, r *http.Request) error {
	var ask api.ApplyRequest
	if err := decode(r, &ask); err != nil {
		return err
	}
	result := api.ApplyResult{Changes: []api.ApplyChange{}, Operations: []api.Operation{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range ask.Manifests {
		var g api.GuestSpec
		if m.Kind == "guest" {
			if err := json.Unmarshal(m.Spec, &g); err != nil {
				return err
			}
		}
		change := api.ApplyChange{Kind: m.Kind, Name: g.Name, Action: "none"}
		if old, ok := s.guests[g.Name]; m.Kind == "guest" && ok && g.MemoryBytes != nil && old.MemoryBytes != *g.MemoryBytes {
			change.Action = "change"
			from, _ := json.Marshal(old.MemoryBytes)
			to, _ := json.Marshal(*g.MemoryBytes)
			change.Fields = []api.FieldChange{{Field: "memory_bytes", From: from, To: to}}
		} else if m.Kind == "guest" && !ok {
			change.Action = "create"
			if !ask.DryRun {
				s.guests[g.Name] = record(g.Name, g)
				op := &api.Operation{ID: fmt.Sprintf("op%d", len(s.ops)+1), Verb: "guest.create", Subjects: []string{"guest/" + g.Name}, State: "done"}
				s.ops[op.ID] = op
				result.Operations = append(result.Operations, *op)
			}
		}
		result.Changes = append(result.Changes, change)
	}
	return reply(w, 200, result)
}
