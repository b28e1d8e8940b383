package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/base/bus"
	"lodge/internal/base/errs"
	"lodge/internal/base/session"
	"lodge/internal/model/guest"
	"lodge/internal/model/image"
	"lodge/internal/model/operation"
	"lodge/internal/model/pool"
	"lodge/internal/store"
	"lodge/internal/store/tables"
)

// house is a server on a Unix socket, over a memory store. Instead of
// reconcilers it has settle, which ends every operation at once.
type house struct {
	*testing.T
	*Server
	client *http.Client
	socket string
	live   *fakeLive
	log    *bytes.Buffer
	ends   atomic.Pointer[operation.Status] // how operations end; nil: they do not
}

func newHouse(t *testing.T) *house {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := store.NewMemory()
	tb := tables.Open(s)
	h := &house{T: t, live: &fakeLive{killed: make(chan struct{}, 1)}, log: &bytes.Buffer{}, socket: filepath.Join(t.TempDir(), "s")}
	h.ends.Store(&operation.Status{State: operation.Done})
	door := admission.New(admission.Options{
		Store: s, Tables: tb, Host: admission.Host{CPUs: 2, Memory: 8 << 30},
		Engine: func(m guest.Model, _ string) (admission.Engine, error) {
			if m != guest.OS {
				return admission.Engine{}, &errs.Error{Kind: errs.Unsupported, Field: "model", Msg: string(m) + " cannot run here: it is a test"}
			}
			return admission.Engine{Name: "toy", Model: guest.OS, Form: guest.Tree, Pause: true}, nil
		},
		PoolDrivers:    func() []admission.Driver { return []admission.Driver{{Name: "dir"}} },
		NetworkDrivers: func() []admission.Driver { return []admission.Driver{{Name: "bridge"}} },
		CheckSource:    func(image.Spec) error { return nil },
		CheckKernel: func(name string) error {
			if name != "um/toy" {
				return errs.Bad("name", "there is no kernel "+name, "use um/toy")
			}
			return nil
		},
		PortFree: func(string, netip.Addr, uint16) error { return nil },
	})
	h.Server = New(ctx, Options{
		Door: door, Store: s, Tables: tb, Live: h.live, Images: fakeImages{}, Screens: &fakeScreens{}, Care: fakeCare{}, Explain: explained, Probe: probed,
		Space: func(context.Context, string) (Space, error) { return Space{100, 40, 60}, nil },
		Doctor: func(_ context.Context, fix bool) ([]api.Check, error) {
			return []api.Check{{Name: "x", State: "ok", Fixed: fix}}, nil
		},
		Host:  func(context.Context) (api.Host, error) { return api.Host{Name: "here"}, nil },
		Graph: func() []string { return []string{"spec -> guests -> status"} }, Progress: bus.New[operation.Progress](),
		HostName: "here", Version: "0.1", Token: "secret", Log: slog.New(slog.NewTextHandler(h.log, nil)),
	})
	l, err := net.Listen("unix", h.socket)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	settled := make(chan struct{})
	h.client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", h.socket)
	}}}
	t.Cleanup(func() {
		h.client.CloseIdleConnections()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		<-settled
		s.Close()
	})
	h.stock(door)
	go func() { defer close(settled); h.settle(ctx) }()
	h.settled()
	return h
}

// stock puts a network, a pool, an image and a running guest into the house.
func (h *house) stock(door *admission.Door) {
	ctx := context.Background()
	for _, do := range []func() (tables.OperationRecord, error){
		func() (tables.OperationRecord, error) {
			return door.CreateNetwork(ctx, "t", admission.NetworkWish{Name: "default", IPv4: "10.67.0.0/16"})
		},
		func() (tables.OperationRecord, error) {
			return door.CreatePool(ctx, "t", "default", pool.Spec{Driver: "dir"})
		},
		func() (tables.OperationRecord, error) {
			return door.BuildImage(ctx, "t", admission.ImageWish{Name: "debian/12"})
		},
	} {
		if _, err := do(); err != nil {
			h.Fatal(err)
		}
	}
	i, _ := h.Tables.Images.Get("debian/12")
	if _, err := h.Tables.Images.SetStatus(ctx, i.ID, func(s *image.Status) error {
		s.Digest, s.Wish, s.Info.Packages = "sha256:1", 1, []string{"bash 5.2"}
		s.Info.Init, s.Info.CloudInit = []string{"/sbin/init"}, true
		return nil
	}); err != nil {
		h.Fatal(err)
	}
	p, _ := h.Tables.Pools.Get("default")
	if _, err := h.Tables.Pools.SetStatus(ctx, p.ID, func(s *pool.Status) error { s.Ready = true; return nil }); err != nil {
		h.Fatal(err)
	}
	if _, err := door.CreateGuests(ctx, "t", admission.GuestWish{Name: "web1", Image: "debian/12", Start: true,
		Patch: admission.Patch{Labels: &map[string]string{"tier": "web"}, Publish: &[]string{"8080:80"}}}); err != nil {
		h.Fatal(err)
	}
	g, _ := h.Tables.Guests.Get("web1")
	if _, err := h.Tables.Guests.SetStatus(ctx, g.ID, func(s *guest.Status) error {
		s.Phase, s.Boots, s.Generation, s.Pid = guest.Running, 1, 1, 42
		return nil
	}); err != nil {
		h.Fatal(err)
	}
	if _, err := h.Tables.Holders.Create(ctx, g.ID, guest.Holder{Host: "here", Slot: 1}, store.WithID(g.ID)); err != nil {
		h.Fatal(err)
	}
}

func (h *house) settle(ctx context.Context) {
	from := h.Store.Rev()
	for _, op := range h.Tables.Operations.List() {
		h.endOperation(ctx, op)
	}
	for c, err := range h.Tables.Operations.Watch(ctx, from) {
		if err == nil && !c.Deleted {
			h.endOperation(ctx, c.Record)
		}
	}
}

func (h *house) endOperation(ctx context.Context, op tables.OperationRecord) {
	end := h.ends.Load()
	if op.Status.State.Final() || end == nil {
		return
	}
	now := time.Now()
	if _, err := h.Tables.Operations.SetStatus(ctx, op.ID, func(s *operation.Status) error {
		*s = *end
		s.Ended = &now
		return nil
	}); err != nil && ctx.Err() == nil {
		h.Error(err)
	}
}

// ask makes a request; body may be nil, text or something to be JSON.
func (h *house) ask(method, path string, body any, header ...string) (*http.Response, []byte) {
	h.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			h.Fatal(err)
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(h.Context(), method, "http://lodge"+path, r)
	if err != nil {
		h.Fatal(err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := h.client.Do(req)
	if err != nil {
		h.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		h.Fatal(err)
	}
	return resp, text
}

// want makes a request whose answer must have a status, and decodes it.
func want[T any](h *house, status int, method, path string, body any, header ...string) T {
	h.Helper()
	resp, text := h.ask(method, path, body, header...)
	// What was not waited for may have ended all the same.
	if resp.StatusCode != status && (status != http.StatusAccepted || resp.StatusCode != http.StatusOK) {
		h.Fatalf("%s %s: %s %s", method, path, resp.Status, text)
	}
	if status >= 400 && resp.Header.Get("Content-Type") != problemType {
		h.Fatalf("%s %s: an error of type %s", method, path, resp.Header.Get("Content-Type"))
	}
	var v T
	if len(text) > 0 && status != http.StatusNoContent {
		if err := json.Unmarshal(text, &v); err != nil {
			h.Fatalf("%s %s: %v: %s", method, path, err, text)
		}
	}
	return v
}

// fakeLive runs programs of the test's own machine, as guests' programs.
type fakeLive struct {
	killed chan struct{}
	got    bytes.Buffer
	looks  atomic.Int32 // at a guest that boots
}

func (l *fakeLive) Exec(_ context.Context, _ string, r session.Request) (session.Session, error) {
	switch r.Argv[0] {
	case "panic":
		panic("on purpose")
	case "boots":
		if r.Argv[1] == "long" || l.looks.Add(1) < 3 {
			return nil, &errs.Error{Kind: errs.Busy, Ref: "guest/web1", Msg: "boots and does not answer yet", Hint: "wait for it"}
		}
		r.Argv = r.Argv[1:]
	case "nothing":
		return nil, &errs.Error{Kind: errs.NotFound, Field: "command", Msg: "there is no nothing in the guest"}
	}
	cmd := exec.Command(r.Argv[0], r.Argv[1:]...)
	cmd.Stdout, cmd.Stderr = r.Stdout, r.Stderr
	if r.Stdin != nil { // a nil file in an io.Reader is not nil
		cmd.Stdin = r.Stdin
	}
	p := &program{cmd: cmd, live: l}
	if r.TTY {
		host, theirs, err := os.Pipe() // its output only: enough of a terminal here
		if err != nil {
			return nil, err
		}
		cmd.Stdout, cmd.Stderr, p.terminal = theirs, theirs, host
		defer theirs.Close()
	}
	return p, cmd.Start()
}

type program struct {
	cmd      *exec.Cmd
	live     *fakeLive
	terminal *os.File
	resized  atomic.Uint32
}

func (p *program) Terminal() *os.File { return p.terminal }
func (p *program) Resize(rows, cols uint16) error {
	p.resized.Store(uint32(rows)<<16 | uint32(cols))
	return nil
}
func (p *program) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

func (p *program) Wait(ctx context.Context) (int, error) {
	stop := context.AfterFunc(ctx, func() {
		p.cmd.Process.Kill()
		p.live.killed <- struct{}{}
	})
	defer stop()
	err := p.cmd.Wait()
	if p.terminal != nil {
		p.terminal.Close()
	}
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return e.ExitCode(), nil
	}
	return 0, err
}

func (l *fakeLive) Console(context.Context, string) (Console, error) {
	mine, theirs := net.Pipe()
	go io.Copy(theirs, theirs) // it echoes
	return echo{mine}, nil
}

type echo struct{ net.Conn }

func (echo) Resize(uint16, uint16) error { return nil }

func (l *fakeLive) Logs(_ context.Context, _ string, tail int, _ bool, w io.Writer) error {
	if tail == 0 {
		return &errs.Error{Kind: errs.Unavailable, Msg: "no log"}
	}
	_, err := io.WriteString(w, "hello\n")
	return err
}

func (l *fakeLive) Pack(_ context.Context, _, path string, w io.Writer) error {
	if path == "/none" {
		return errs.Missing(path, "")
	}
	if _, err := io.WriteString(w, "tar of "+path); err != nil || path != "/half" {
		return err
	}
	return errors.New("disk on fire")
}

func (l *fakeLive) Unpack(_ context.Context, _, dir string, r io.Reader) error {
	if dir == "/full" {
		return &errs.Error{Kind: errs.NoSpace, Msg: "the disk is full", Hint: "make it larger"}
	}
	_, err := l.got.ReadFrom(r)
	return err
}

func (l *fakeLive) Usage(context.Context, string) (guest.Usage, uint64, error) {
	return guest.Usage{Memory: 7}, 9, nil
}

type fakeImages struct{}

func (fakeImages) Spool(_ context.Context, r io.Reader, limit uint64) (string, string, error) {
	n, err := io.Copy(io.Discard, r)
	if limit > 0 && uint64(n) > limit {
		return "", "", &errs.Error{Kind: errs.Invalid, Field: "max_size", Msg: "is larger"}
	}
	return "import", "aaaaaaaaaaaaaaaa", err
}
func (fakeImages) Discard(string) error { return nil }
func (fakeImages) Export(_ context.Context, name, format string, w io.Writer) error {
	_, err := io.WriteString(w, name+" as "+format)
	return err
}
