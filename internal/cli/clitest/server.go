// Package clitest is a lodged without guests: it keeps records in memory and
// answers the API's routes as lodged does, so that the command line can be
// tested without a host to divide.
package clitest

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"lodge/api"
)

// Server is the false lodged. Make one with Start.
type Server struct {
	mu      sync.Mutex
	rev     int64
	guests  map[string]*api.Guest
	images  map[string]*api.Image
	kernels map[string]*api.Kernel
	pools   map[string]*api.Pool
	nets    map[string]*api.Network
	fwds    map[string]*api.Forward
	ops     map[string]*api.Operation
	files   map[string]map[string]entry // guest, path
	log     []api.Event
	subs    map[chan api.Event]struct{}
	cut     int // event streams still to be broken after their first event
	hold    chan struct{}
}

// Start listens on a Unix socket in dir. The server lives until the returned
// function is called.
func Start(dir string) (host string, s *Server, stop func(), err error) {
	s = &Server{
		rev: 100, guests: map[string]*api.Guest{}, images: map[string]*api.Image{}, kernels: map[string]*api.Kernel{}, pools: map[string]*api.Pool{},
		nets: map[string]*api.Network{}, fwds: map[string]*api.Forward{}, ops: map[string]*api.Operation{},
		files: map[string]map[string]entry{}, subs: map[chan api.Event]struct{}{}, hold: make(chan struct{}),
	}
	s.images["busybox"] = &api.Image{Name: "busybox", ID: "i1", Source: "busybox", Digest: "sha256:0123456789abcdef", SizeBytes: 1 << 20, Ready: true, UsedBy: []string{}}
	s.pools["default"] = &api.Pool{Name: "default", Driver: "btrfs", Ready: true, Quota: "enforced (squota)", TotalBytes: 10 << 30, UsedBytes: 1 << 30, FreeBytes: 9 << 30, UsedBy: []string{}}
	s.nets["default"] = &api.Network{Name: "default", Driver: "bridge", IPv4: "10.67.0.0/16", NAT: true, Domain: "lodge.internal", Ready: true}
	path := filepath.Join(dir, "lodged.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		return "", nil, nil, err
	}
	server := &http.Server{Handler: s.routes()}
	go server.Serve(l)
	return "unix://" + path, s, func() { server.Close() }, nil
}

// CutEvents breaks the next n event streams after their first event.
func (s *Server) CutEvents(n int) {
	s.mu.Lock()
	s.cut = n
	s.mu.Unlock()
}

// Release lets the operations on guests called "slow…" end.
func (s *Server) Release() { close(s.hold) }

func (s *Server) routes() http.Handler {
	m := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		m.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				fail(w, err)
			}
		})
	}
	handle("GET /v1/version", s.version)
	handle("GET /v1/host", s.host)
	handle("POST /v1/doctor", s.doctor)
	handle("GET /v1/debug/graph", func(w http.ResponseWriter, _ *http.Request) error {
		_, err := fmt.Fprintln(w, "guests reads placement writes guest")
		return err
	})
	handle("GET /v1/guests", s.listGuests)
	handle("POST /v1/guests", s.createGuest)
	handle("GET /v1/guests/{name}", s.getGuest)
	handle("PATCH /v1/guests/{name}", s.patchGuest)
	handle("DELETE /v1/guests/{name}", s.deleteGuest)
	handle("POST /v1/guests/{name}/{verb}", s.guestVerb)
	handle("GET /v1/guests/{name}/exec", s.exec)
	handle("GET /v1/guests/{name}/console", s.console)
	handle("GET /v1/guests/{name}/logs", s.logs)
	handle("GET /v1/guests/{name}/files", s.getFiles)
	handle("PUT /v1/guests/{name}/files", s.putFiles)
	handle("GET /v1/guests/{name}/usage", s.guestUsage)
	handle("GET /v1/guests/{name}/explain", s.explain)
	handle("GET /v1/guests/{name}/screenshot", s.screenshot)
	handle("POST /v1/guests/{name}/keys", s.keys)
	handle("POST /v1/guests/{name}/display", s.ticket)
	handle("GET /v1/guests/{name}/display", s.display)
	handle("POST /v1/guests/{name}/debug", s.debug)
	handle("POST /v1/guests/{name}/password", s.password)
	handle("POST /v1/guests/{name}/authorized-keys", s.authorize)
	handle("POST /v1/guests/{name}/trim", s.trim)
	handle("POST /v1/guests/{name}/clock", s.clock)
	handle("DELETE /v1/guests/{name}/disks/{what}", s.detach)
	handle("DELETE /v1/guests/{name}/nics/{what}", s.detach)
	handle("GET /v1/engines", s.engines)
	handle("GET /v1/engines/{name}", s.engine)
	handle("POST /v1/engine-probes", s.engines)
	handle("GET /v1/usage", s.usage)
	handle("GET /v1/images", func(w http.ResponseWriter, _ *http.Request) error { return list(s, w, s.images) })
	handle("GET /v1/images/{name...}", func(w http.ResponseWriter, r *http.Request) error { return show(s, w, r, "image", s.images) })
	handle("DELETE /v1/images/{name...}", func(w http.ResponseWriter, r *http.Request) error { return remove(s, w, r, "image", s.images) })
	handle("POST /v1/image-builds", s.buildImage)
	handle("POST /v1/image-imports", s.importImage)
	handle("GET /v1/image-exports", s.exportImage)
	handle("GET /v1/kernels", func(w http.ResponseWriter, _ *http.Request) error { return list(s, w, s.kernels) })
	handle("GET /v1/kernels/{name...}", func(w http.ResponseWriter, r *http.Request) error { return show(s, w, r, "kernel", s.kernels) })
	handle("DELETE /v1/kernels/{name...}", func(w http.ResponseWriter, r *http.Request) error { return remove(s, w, r, "kernel", s.kernels) })
	handle("POST /v1/kernel-builds", s.buildKernel)
	handle("GET /v1/pools", func(w http.ResponseWriter, _ *http.Request) error { return list(s, w, s.pools) })
	handle("GET /v1/pools/{name}", func(w http.ResponseWriter, r *http.Request) error { return show(s, w, r, "pool", s.pools) })
	handle("DELETE /v1/pools/{name}", func(w http.ResponseWriter, r *http.Request) error { return remove(s, w, r, "pool", s.pools) })
	handle("POST /v1/pools", s.createPool)
	handle("GET /v1/networks", func(w http.ResponseWriter, _ *http.Request) error { return list(s, w, s.nets) })
	handle("GET /v1/networks/{name}", func(w http.ResponseWriter, r *http.Request) error { return show(s, w, r, "network", s.nets) })
	handle("DELETE /v1/networks/{name}", func(w http.ResponseWriter, r *http.Request) error { return remove(s, w, r, "network", s.nets) })
	handle("POST /v1/networks", s.createNetwork)
	handle("GET /v1/forwards", func(w http.ResponseWriter, _ *http.Request) error { return list(s, w, s.fwds) })
	handle("GET /v1/forwards/{name}", func(w http.ResponseWriter, r *http.Request) error { return show(s, w, r, "forward", s.fwds) })
	handle("DELETE /v1/forwards/{name}", func(w http.ResponseWriter, r *http.Request) error { return remove(s, w, r, "forward", s.fwds) })
	handle("POST /v1/forwards", s.createForward)
	handle("GET /v1/operations", s.listOps)
	handle("GET /v1/operations/{id}", s.getOp)
	handle("POST /v1/operations/{id}/cancel", s.cancelOp)
	handle("GET /v1/events", s.events)
	handle("POST /v1/apply", s.apply)
	return m
}

func fail(w http.ResponseWriter, err error) {
	e, ok := err.(*api.Error)
	if !ok {
		e = &api.Error{Kind: api.KindInternal, Detail: err.Error()}
	}
	status := map[string]int{api.KindInvalid: 422, api.KindNotFound: 404, api.KindExists: 409, api.KindConflict: 409, api.KindDenied: 403, api.KindUnavailable: 503, api.KindNoSpace: 507}[e.Kind]
	if status == 0 {
		status = 500
	}
	body := *e
	body.Status = status
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

func missing(kind, name string) error {
	return &api.Error{Kind: api.KindNotFound, Ref: kind + "/" + name, Detail: "does not exist"}
}

func reply(w http.ResponseWriter, status int, v any) error {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	return json.NewEncoder(w).Encode(v)
}

func decode(r *http.Request, v any) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &api.Error{Kind: api.KindInvalid, Detail: err.Error()}
	}
	return nil
}

func list[T any](s *Server, w http.ResponseWriter, m map[string]*T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	all := []T{}
	for _, n := range names {
		all = append(all, *m[n])
	}
	w.Header().Set("ETag", strconv.Quote(strconv.FormatInt(s.rev, 10)))
	return reply(w, 200, all)
}

func show[T any](s *Server, w http.ResponseWriter, r *http.Request, kind string, m map[string]*T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := m[r.PathValue("name")]
	if !ok {
		return missing(kind, r.PathValue("name"))
	}
	return reply(w, 200, v)
}

func remove[T any](s *Server, w http.ResponseWriter, r *http.Request, kind string, m map[string]*T) error {
	name := r.PathValue("name")
	s.mu.Lock()
	_, ok := m[name]
	delete(m, name)
	s.mu.Unlock()
	if !ok {
		return missing(kind, name)
	}
	s.publish(api.Event{Type: "deleted", Kind: kind, Name: name})
	return s.operate(w, r, kind+".remove", []string{kind + "/" + name}, nil)
}

// operate answers with an operation that work makes; nil is done at once. What
// is about a "slow…" thing takes until Release.
func (s *Server) operate(w http.ResponseWriter, r *http.Request, verb string, subjects []string, work func() *api.Problem) error {
	s.mu.Lock()
	op := &api.Operation{ID: fmt.Sprintf("op%d", len(s.ops)+1), Verb: verb, Subjects: subjects, By: "root", State: "working", Created: time.Now()}
	s.ops[op.ID] = op
	s.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if len(subjects) > 0 && strings.Contains(subjects[0], "/slow") {
			<-s.hold
		}
		var p *api.Problem
		if work != nil {
			p = work()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if now := time.Now(); op.State == "working" {
			op.State, op.Ended = "done", &now
			if p != nil {
				op.State, op.Problem = "failed", p
			}
		}
	}()
	return s.answer(w, r, op, ended)
}

// answer waits as ?wait= says, and tells how it stands.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, op *api.Operation, ended <-chan struct{}) error {
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	if wait > 0 {
		select {
		case <-ended:
		case <-time.After(wait):
		case <-r.Context().Done():
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Lodge-Operation", op.ID)
	if wait > 0 && op.State == "failed" {
		return &api.Error{Kind: op.Problem.Code, Ref: op.Subjects[0], Detail: op.Problem.Message, Hint: op.Problem.Hint}
	}
	status := 202
	if op.State == "done" {
		status = 200
	}
	return reply(w, status, op)
}

func (s *Server) listOps(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []api.Operation{}
	for _, o := range s.ops {
		if r.URL.Query().Has("all") || o.State == "working" {
			all = append(all, *o)
		}
	}
	slices.SortFunc(all, func(a, b api.Operation) int { return strings.Compare(a.ID, b.ID) })
	return reply(w, 200, all)
}

func (s *Server) getOp(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	op, ok := s.ops[r.PathValue("id")]
	s.mu.Unlock()
	if !ok {
		return missing("operation", r.PathValue("id"))
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			s.mu.Lock()
			final := op.State != "working"
			s.mu.Unlock()
			if final || r.Context().Err() != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return s.answer(w, r, op, ended)
}

func (s *Server) cancelOp(w http.ResponseWriter, r *http.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	op, ok := s.ops[r.PathValue("id")]
	if !ok {
		return missing("operation", r.PathValue("id"))
	}
	op.State = "cancelled"
	return reply(w, 200, op)
}

func (s *Server) publish(e api.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.At = time.Now()
	if e.Type != "progress" {
		s.rev++
		e.Rev = s.rev
		s.log = append(s.log, e)
	}
	for ch := range s.subs {
		ch <- e
	}
}

func (s *Server) events(w http.ResponseWriter, r *http.Request) error {
	since, _ := strconv.ParseInt(r.URL.Query().Get("since"), 10, 64)
	if id := r.Header.Get("Last-Event-ID"); id != "" {
		since, _ = strconv.ParseInt(id, 10, 64)
	}
	if since > 0 && since < 80 {
		return &api.Error{Kind: api.KindConflict, Detail: "compacted", Hint: "list again"}
	}
	ch := make(chan api.Event, 256)
	s.mu.Lock()
	cut := s.cut > 0
	if cut {
		s.cut--
	}
	for _, e := range s.log {
		if since > 0 && e.Rev > since {
			ch <- e
		}
	}
	s.subs[ch] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.subs, ch)
		s.mu.Unlock()
	}()
	w.Header().Set("Content-Type", "text/event-stream")
	w.WriteHeader(200)
	fmt.Fprint(w, ": hello\n\n")
	http.NewResponseController(w).Flush()
	for {
		select {
		case <-r.Context().Done():
			return nil
		case e := <-ch:
			if kind := r.URL.Query().Get("kind"); kind != "" && kind != e.Kind {
				continue
			}
			b, _ := json.Marshal(e)
			fmt.Fprintf(w, "id: %d\ndata: %s\n\n", e.Rev, b)
			http.NewResponseController(w).Flush()
			if cut {
				return nil
			}
		}
	}
}
