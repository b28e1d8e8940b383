package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"lodge/api"
	"lodge/internal/base/errs"
	"lodge/internal/model"
	"lodge/internal/model/operation"
)

func TestGuestRoutes(t *testing.T) {
	h := newHouse(t)
	all := want[[]api.Guest](h, 200, "GET", "/v1/guests", nil)
	if len(all) != 1 || all[0].Name != "web1" || all[0].Phase != "running" || all[0].Host != "here" || all[0].Pid != 42 || len(all[0].Addresses) != 2 || all[0].Publish[0] != "8080:80/tcp" {
		t.Fatalf("%+v", all)
	}
	if got := want[[]api.Guest](h, 200, "GET", "/v1/guests?label=tier=db", nil); got == nil || len(got) != 0 {
		t.Fatalf("%+v", got)
	}
	if got := want[[]api.Guest](h, 200, "GET", "/v1/guests?label=tier=web&label=tier", nil); len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	op := want[api.Operation](h, 200, "POST", "/v1/guests?wait=10s", api.GuestCreate{GuestSpec: api.GuestSpec{Name: "web2", Image: "debian/12"}, Start: true})
	if op.State != "done" || op.Subjects[0] != "guest/web2" || op.Verb != "guest.create" || op.By != "user" || op.Ended == nil {
		t.Fatalf("%+v", op)
	}
	g := want[api.Guest](h, 200, "GET", "/v1/guests/web2", nil)
	if g.Wanted != "on" || g.Phase != "unplaced" || g.MemoryBytes != 512<<20 || g.CPUs != 1 || g.DiskBytes != 10<<30 || g.Addresses[0] != "10.67.0.3" {
		t.Fatalf("%+v", g)
	}
	memory := uint64(1 << 30)
	want[api.Operation](h, 200, "PATCH", "/v1/guests/web2?wait=10s", api.GuestPatch{MemoryBytes: &memory})
	if e := want[api.Error](h, 409, "PATCH", "/v1/guests/web2", api.GuestPatch{MemoryBytes: &memory}, "If-Match", `"1"`); e.Kind != "conflict" {
		t.Fatalf("%+v", e)
	}
	want[api.Operation](h, 202, "PATCH", "/v1/guests/web2", api.GuestPatch{MemoryBytes: &memory}, "If-Match", `"2"`)
	for _, verb := range []string{"start", "pause", "resume", "stop", "restart?force=true"} {
		want[api.Operation](h, 202, "POST", "/v1/guests/web1/"+verb, nil)
	}
	want[api.Operation](h, 200, "POST", "/v1/guests/web1/stop?wait=5", api.GuestStop{Force: true})
	want[api.Operation](h, 200, "POST", "/v1/guests/web2/rename?wait=5s", api.Rename{Name: "web3"})
	if e := want[api.Error](h, 404, "GET", "/v1/guests/web2", nil); e.Ref != "guest/web2" || e.Kind != "not-found" {
		t.Fatalf("%+v", e)
	}
	if e := want[api.Error](h, 409, "DELETE", "/v1/guests/web1", nil); !strings.Contains(e.Hint, "--force") {
		t.Fatalf("%+v", e)
	}
	want[api.Operation](h, 202, "DELETE", "/v1/guests/web1?force=true", nil)
	if u := want[api.Usage](h, 200, "GET", "/v1/guests/web3/usage", nil); u.MemoryBytes != 7 || u.DiskBytes != 9 || u.Name != "web3" {
		t.Fatalf("%+v", u)
	}
	if u := want[[]api.Usage](h, 200, "GET", "/v1/usage", nil); len(u) != 1 {
		t.Fatalf("%+v", u)
	}
}

func TestOtherRoutes(t *testing.T) {
	h := newHouse(t)
	if v := want[api.Version](h, 200, "GET", "/v1/version", nil); v.Version != "0.1" || v.API != "v1" {
		t.Fatalf("%+v", v)
	}
	if v := want[api.Host](h, 200, "GET", "/v1/host", nil); v.Guests != 1 || v.Running != 1 || v.Engines == nil {
		t.Fatalf("%+v", v)
	}
	if v := want[[]api.Check](h, 200, "POST", "/v1/doctor?fix=true", nil); len(v) != 1 || !v[0].Fixed {
		t.Fatalf("%+v", v)
	}
	if _, text := h.ask("GET", "/v1/debug/graph", nil); string(text) != "spec -> guests -> status\n" {
		t.Fatal(string(text))
	}
	if v := want[map[string]any](h, 200, "GET", "/v1/openapi.json", nil); v["openapi"] != "3.1.0" {
		t.Fatal(v["openapi"])
	}
	if v := want[[]api.Image](h, 200, "GET", "/v1/images", nil); len(v) != 1 || v[0].UsedBy[0] != "web1" || v[0].Packages != nil || !v[0].Ready {
		t.Fatalf("%+v", v)
	}
	for _, path := range []string{"/v1/images/debian/12", "/v1/images/debian%2F12"} {
		if v := want[api.Image](h, 200, "GET", path, nil); len(v.Packages) != 1 {
			t.Fatalf("%+v", v)
		}
	}
	want[api.Operation](h, 202, "POST", "/v1/image-builds", api.ImageBuild{Name: "debian/13", Variant: "minimal"})
	want[api.Operation](h, 200, "DELETE", "/v1/images/debian/13-minimal?wait=5s", nil)
	want[api.Operation](h, 200, "POST", "/v1/image-imports?name=mine/1&wait=5s", "tar", "Content-Type", "application/x-tar")
	want[api.Error](h, 409, "POST", "/v1/image-imports?name=mine/1", "tar", "Content-Type", "application/x-tar")
	want[api.Error](h, 422, "POST", "/v1/image-imports?name=mine/2&max_size=1", "tar", "Content-Type", "application/x-tar")
	if _, text := h.ask("GET", "/v1/image-exports?name=debian/12&format=erofs", nil); string(text) != "debian/12 as erofs" {
		t.Fatal(string(text))
	}
	want[api.Error](h, 404, "GET", "/v1/image-exports?name=none", nil)
	want[api.Operation](h, 202, "POST", "/v1/kernel-builds", api.KernelBuild{Name: "um/toy"})
	want[api.Error](h, 422, "POST", "/v1/kernel-builds", api.KernelBuild{Name: "um/other"})
	if v := want[[]api.Kernel](h, 200, "GET", "/v1/kernels", nil); len(v) != 1 || v[0].Name != "um/toy" || v[0].Kind != "um" || v[0].Ready || v[0].UsedBy == nil {
		t.Fatalf("%+v", v)
	}
	want[api.Kernel](h, 200, "GET", "/v1/kernels/um/toy", nil)
	want[api.Operation](h, 200, "DELETE", "/v1/kernels/um/toy?wait=5s", nil)
	want[api.Operation](h, 202, "POST", "/v1/pools", api.PoolCreate{Name: "fast", Driver: "dir"})
	if v := want[[]api.Pool](h, 200, "GET", "/v1/pools", nil); len(v) != 2 || v[0].FreeBytes != 60 || v[0].UsedBy[0] != "web1" {
		t.Fatalf("%+v", v)
	}
	want[api.Pool](h, 200, "GET", "/v1/pools/fast", nil)
	want[api.Operation](h, 202, "DELETE", "/v1/pools/fast", nil)
	want[api.Operation](h, 202, "POST", "/v1/networks", api.NetworkCreate{Name: "lan", IPv4: "10.80.0.0/24", IPv6: "none"})
	if v := want[api.Network](h, 200, "GET", "/v1/networks/lan", nil); v.IPv4 != "10.80.0.0/24" || v.IPv6 != "" || !v.NAT || v.Domain != "lodge.internal" {
		t.Fatalf("%+v", v)
	}
	if v := want[[]api.Network](h, 200, "GET", "/v1/networks", nil); len(v) != 2 || v[0].Guests != 1 {
		t.Fatalf("%+v", v)
	}
	want[api.Operation](h, 202, "DELETE", "/v1/networks/lan", nil)
	want[api.Operation](h, 202, "POST", "/v1/forwards", api.ForwardCreate{Guest: "web1", Publish: "127.0.0.1:99:80/udp"})
	if v := want[api.Forward](h, 200, "GET", "/v1/forwards/udp-127.0.0.1-99", nil); v.Guest != "web1" || v.Listen != "127.0.0.1" || v.Target != 80 {
		t.Fatalf("%+v", v)
	}
	want[api.Operation](h, 202, "DELETE", "/v1/forwards/udp-127.0.0.1-99", nil)
	if v := want[[]api.Forward](h, 200, "GET", "/v1/forwards", nil); len(v) != 1 {
		t.Fatalf("%+v", v)
	}
}

func TestOperations(t *testing.T) {
	h := newHouse(t)
	h.ends.Store(nil)
	op := want[api.Operation](h, 202, "POST", "/v1/guests/web1/restart?wait=20ms", nil)
	if op.State != "working" {
		t.Fatalf("%+v", op)
	}
	if all := want[[]api.Operation](h, 200, "GET", "/v1/operations", nil); len(all) == 0 || all[0].ID != op.ID {
		t.Fatalf("%+v", all)
	}
	ended := make(chan api.Operation)
	go func() { ended <- want[api.Operation](h, 200, "GET", "/v1/operations/"+op.ID+"?wait=30s", nil) }()
	if _, err := h.Tables.Operations.SetStatus(t.Context(), op.ID, func(s *operation.Status) error { s.State = operation.Done; return nil }); err != nil {
		t.Fatal(err)
	}
	if got := <-ended; got.State != "done" {
		t.Fatalf("%+v", got)
	}
	h.ends.Store(&operation.Status{State: operation.Failed, Problem: &model.Problem{Code: "no-space", Message: "the pool is full", Hint: "make space"}})
	resp, text := h.ask("POST", "/v1/guests/web1/restart?wait=10s", nil)
	id := resp.Header.Get("Lodge-Operation")
	if resp.StatusCode != http.StatusInsufficientStorage || id == "" || !strings.Contains(string(text), `"ref":"guest/web1"`) || !strings.Contains(string(text), "make space") {
		t.Fatal(resp.Status, id, string(text))
	}
	if e := want[api.Error](h, 409, "POST", "/v1/operations/"+id+"/cancel", nil); e.Kind != "conflict" {
		t.Fatalf("%+v", e)
	}
	if got := want[api.Operation](h, 200, "GET", "/v1/operations/"+id, nil); got.State != "failed" || got.Problem.Code != "no-space" {
		t.Fatalf("%+v", got)
	}
	if all := want[[]api.Operation](h, 200, "GET", "/v1/operations?all=true", nil); len(all) < 2 {
		t.Fatalf("%+v", all)
	}
	want[api.Error](h, 404, "GET", "/v1/operations/nothing", nil)
	want[api.Error](h, 422, "POST", "/v1/guests/web1/start?wait=soon", nil)
}

func TestRefusedRequests(t *testing.T) {
	h := newHouse(t)
	for name, c := range map[string]struct {
		method, path string
		body         any
		status       int
		kind, field  string
	}{
		"unknown field":       {"POST", "/v1/guests", `{"name":"a","image":"debian/12","memory":5}`, 422, "invalid", "memory"},
		"missing field":       {"POST", "/v1/guests", `{"name":"a"}`, 422, "invalid", "image"},
		"wrong type":          {"POST", "/v1/guests", `{"name":"a","image":"debian/12","memory_bytes":"much"}`, 422, "invalid", "memory_bytes"},
		"not json":            {"POST", "/v1/guests", `{`, 400, "invalid", ""},
		"bad enum":            {"POST", "/v1/guests", `{"name":"a","image":"debian/12","restart":"often"}`, 422, "invalid", "restart"},
		"memory 0":            {"POST", "/v1/guests", `{"name":"a","image":"debian/12","memory_bytes":0}`, 422, "invalid", "memory_bytes"},
		"exists":              {"POST", "/v1/guests", `{"name":"web1","image":"debian/12"}`, 409, "exists", "name"},
		"no image":            {"POST", "/v1/guests", `{"name":"a","image":"debian/1"}`, 404, "not-found", "image"},
		"unsupported":         {"POST", "/v1/guests", `{"name":"a","image":"debian/12","model":"vm"}`, 501, "unsupported", "model"},
		"unknown parameter":   {"GET", "/v1/guests?lable=x", nil, 422, "invalid", "lable"},
		"no such route":       {"GET", "/v1/unicorns", nil, 404, "not-found", ""},
		"no such method":      {"PUT", "/v1/guests", nil, 404, "not-found", ""},
		"no upgrade":          {"GET", "/v1/guests/web1/exec", nil, 422, "invalid", "Upgrade"},
		"relative path":       {"GET", "/v1/guests/web1/files?path=etc", nil, 422, "invalid", "path"},
		"no path":             {"GET", "/v1/guests/web1/files", nil, 422, "invalid", "path"},
		"files of nobody":     {"GET", "/v1/guests/x/files?path=/etc", nil, 404, "not-found", ""},
		"no file":             {"GET", "/v1/guests/web1/files?path=/none", nil, 404, "not-found", ""},
		"full":                {"PUT", "/v1/guests/web1/files?path=/full", "tar", 507, "no-space", ""},
		"no logs":             {"GET", "/v1/guests/web1/logs?tail=0", nil, 503, "unavailable", ""},
		"apply unknown field": {"POST", "/v1/apply", `{"manifests":[{"kind":"network","spec":{"name":"n","mtu":5}}]}`, 422, "invalid", "manifests[0].spec.mtu"},
		"apply bad kind":      {"POST", "/v1/apply", `{"manifests":[{"kind":"unicorn","spec":{}}]}`, 422, "invalid", "manifests[0].kind"},
	} {
		t.Run(name, func(t *testing.T) {
			e := want[api.Error](&house{T: t, Server: h.Server, client: h.client}, c.status, c.method, c.path, c.body)
			if e.Kind != c.kind || e.Field != c.field || e.Status != c.status || e.Detail == "" {
				t.Fatalf("%+v", e)
			}
		})
	}
}

func TestEveryKindHasAStatus(t *testing.T) {
	seen := map[string]bool{}
	for k := errs.Internal; k <= errs.Cancelled; k++ {
		e := wire(&errs.Error{Kind: k, Ref: "guest/x", Field: "f", Msg: "m", Hint: "h"})
		if e.Status < 400 || e.Kind != k.String() || seen[e.Kind] || e.Ref != "guest/x" || e.Field != "f" || e.Hint != "h" {
			t.Errorf("%+v", e)
		}
		seen[e.Kind] = true
	}
	joined := wire(errors.Join(io.EOF, &errs.Error{Kind: errs.NotFound, Ref: "guest/x", Field: "user", Msg: "m"}))
	if joined.Kind != api.KindNotFound || joined.Ref != "guest/x" || joined.Field != "user" || joined.Detail != "m" || joined.Hint != "" {
		t.Errorf("one of several: %+v", joined)
	}
	e := wire(fmt.Errorf("outer: %w", &errs.Error{Kind: errs.Busy, Err: &errs.Error{Kind: errs.Invalid, Msg: "inner", Hint: "deep"}}))
	if e.Kind != "busy" || e.Detail != "inner" || e.Hint != "deep" {
		t.Errorf("%+v", e)
	}
}

func TestFaultsAreLoggedNotTold(t *testing.T) {
	h := newHouse(t)
	for _, c := range []func(){
		func() {
			h.Host = func(context.Context) (api.Host, error) { return api.Host{}, fmt.Errorf("secret cause") }
		},
		func() { h.Host = func(context.Context) (api.Host, error) { panic("secret cause") } },
	} {
		c()
		h.log.Reset()
		e := want[api.Error](h, 500, "GET", "/v1/host", nil)
		id := strings.Fields(strings.SplitAfter(e.Hint, "request ")[1])[0]
		id = strings.TrimSuffix(id, ":")
		if strings.Contains(e.Detail+e.Hint, "secret") || !strings.Contains(h.log.String(), "secret cause") || !strings.Contains(h.log.String(), id) {
			t.Fatalf("%+v %s", e, h.log)
		}
	}
}

func TestListsAreConditional(t *testing.T) {
	h := newHouse(t)
	resp, _ := h.ask("GET", "/v1/guests", nil)
	tag := resp.Header.Get("ETag")
	if resp, text := h.ask("GET", "/v1/guests", nil, "If-None-Match", tag); resp.StatusCode != http.StatusNotModified || len(text) != 0 {
		t.Fatal(resp.Status, string(text))
	}
	want[api.Operation](h, 200, "POST", "/v1/guests/web1/restart?wait=5s", nil)
	want[[]api.Guest](h, 200, "GET", "/v1/guests", nil, "If-None-Match", tag)
}

func TestRepeatedRequest(t *testing.T) {
	h := newHouse(t)
	body := api.GuestCreate{GuestSpec: api.GuestSpec{Name: "web2", Image: "debian/12"}}
	a := want[api.Operation](h, 202, "POST", "/v1/guests", body, "Idempotency-Key", "k")
	b := want[api.Operation](h, 202, "POST", "/v1/guests", body, "Idempotency-Key", "k")
	if a.ID != b.ID {
		t.Fatal(a.ID, b.ID)
	}
	body.Name = "web3"
	want[api.Error](h, 422, "POST", "/v1/guests", body, "Idempotency-Key", "k")
	// What failed may be tried again.
	body.Image = "none"
	want[api.Error](h, 404, "POST", "/v1/guests", body, "Idempotency-Key", "l")
	body.Image = "debian/12"
	want[api.Operation](h, 202, "POST", "/v1/guests", body, "Idempotency-Key", "l")
}

func TestApplyRoute(t *testing.T) {
	h := newHouse(t)
	req := `{"manifests":[{"kind":"guest","spec":{"name":"a","image":"debian/12","cpus":2,"power":"off"}}]}`
	dry := strings.Replace(req, `{"manifests"`, `{"dry_run":true,"manifests"`, 1)
	if r := want[api.ApplyResult](h, 200, "POST", "/v1/apply", dry); len(r.Operations) != 0 || r.Changes[0].Action != "create" {
		t.Fatalf("%+v", r)
	}
	if r := want[api.ApplyResult](h, 200, "POST", "/v1/apply?wait=5s", req); len(r.Operations) != 1 || r.Operations[0].State != "done" {
		t.Fatalf("%+v", r)
	}
	if r := want[api.ApplyResult](h, 200, "POST", "/v1/apply", req); len(r.Operations) != 0 || r.Changes[0].Action != "none" {
		t.Fatalf("%+v", r)
	}
	r := want[api.ApplyResult](h, 200, "POST", "/v1/apply", strings.Replace(req, `"cpus":2`, `"cpus":1.5`, 1))
	if f := r.Changes[0].Fields; len(f) != 1 || f[0].Field != "cpus" || string(f[0].From) != "2" || string(f[0].To) != "1.5" {
		t.Fatalf("%+v", r)
	}
}

func TestHTTPS(t *testing.T) {
	h := newHouse(t)
	dir := t.TempDir()
	config, err := LoadOrMakeTLS(dir, []string{"localhost", "127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadOrMakeTLS(dir, []string{"localhost"})
	if err != nil || string(again.Certificates[0].Certificate[0]) != string(config.Certificates[0].Certificate[0]) {
		t.Fatal("made anew", err)
	}
	other, err := LoadOrMakeTLS(dir, []string{"example.org"})
	if err != nil || other.Certificates[0].Leaf.VerifyHostname("example.org") != nil {
		t.Fatal("not for the new name", err)
	}
	for _, f := range []string{CAFile, "ca.key", "server.crt", "server.key"} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Fatal(f, st, err)
		}
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- h.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-served })
	roots := x509.NewCertPool()
	pem, _ := os.ReadFile(filepath.Join(dir, CAFile))
	roots.AppendCertsFromPEM(pem)
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer web.CloseIdleConnections()
	for token, status := range map[string]int{"": 401, "Bearer ": 401, "Bearer wrong": 401, "Basic secret": 401, "Bearer secret": 200} {
		req, _ := http.NewRequestWithContext(t.Context(), "GET", "https://"+l.Addr().String()+"/v1/version", nil)
		req.Header.Set("Authorization", token)
		resp, err := web.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("%q: %s", token, resp.Status)
		}
	}
}

func TestStrangersAreNotLetIn(t *testing.T) {
	h := newHouse(t)
	if !h.letIn(&unix.Ucred{Uid: 0}) || h.letIn(&unix.Ucred{Uid: 65534, Gid: 65534}) {
		t.Fatal("the wrong ones are let in")
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	p := &peers{Listener: l, allowed: func(c *unix.Ucred) bool { return int(c.Pid) != os.Getpid() }}
	go p.Accept()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || os.IsTimeout(err) {
		t.Fatal(n, err)
	}
	l.Close()
}
