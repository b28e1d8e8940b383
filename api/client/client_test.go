package client

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"lodge/api"
)

// serve starts a server that answers as handle says.
func serve(t *testing.T, handle http.HandlerFunc) *Client {
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	c, err := New(Options{Host: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func kindOfError(err error) string {
	if e, ok := errors.AsType[*api.Error](err); ok {
		return e.Kind
	}
	return fmt.Sprintf("%T", err)
}

func TestHosts(t *testing.T) {
	for host, good := range map[string]bool{
		"": true, "unix:///run/x.sock": true, "https://h:8443": true, "http://127.0.0.1:1": true,
		"unix://relative": false, "ftp://x": false, "h:8443": false, "https://": false, "\x00": false,
	} {
		_, err := New(Options{Host: host})
		if (err == nil) != good || err != nil && kindOfError(err) != api.KindInvalid {
			t.Errorf("New(%q): %v", host, err)
		}
	}
	if _, err := New(Options{Host: "http://example.com", Token: "secret"}); err == nil {
		t.Error("a token would be sent in clear text")
	}
	if _, err := New(Options{Host: "https://h", CACert: "/nonexistent"}); err == nil {
		t.Error("a missing certificate file went through")
	}
}

// TestHTTPS checks that the token goes with every request, that the named
// authority is trusted and that no other is.
func TestHTTPS(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(api.Version{Version: r.Header.Get("Authorization")})
	}))
	t.Cleanup(s.Close)
	s.Config.ErrorLog = nil
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LODGE_HOST", s.URL)
	t.Setenv("LODGE_TOKEN", "secret")
	t.Setenv("LODGE_CACERT", file)
	c, err := FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	if v, err := c.Version(t.Context()); err != nil || v.Version != "Bearer secret" {
		t.Errorf("%v, %v", v, err)
	}
	t.Setenv("LODGE_CACERT", "")
	stranger, err := FromEnv()
	if err != nil {
		t.Fatal(err)
	}
	_, err = stranger.Version(t.Context())
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind != api.KindUnavailable || !strings.Contains(e.Hint, "LODGE_CACERT") {
		t.Errorf("a strange certificate: %#v", err)
	}
}

func TestErrors(t *testing.T) {
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/guests/a":
			w.WriteHeader(404)
			json.NewEncoder(w).Encode(api.Error{Kind: api.KindNotFound, Ref: "guest/a", Detail: "does not exist"})
		case "/v1/guests/proxy":
			http.Error(w, "bad gateway", http.StatusBadGateway)
		case "/v1/guests/forbidden":
			w.WriteHeader(401)
		case "/v1/guests/half":
			w.Header().Set("Content-Length", "100")
			fmt.Fprint(w, `{"name":`)
		case "/v1/guests/slow":
			<-r.Context().Done()
		}
	})
	for name, want := range map[string]string{"a": api.KindNotFound, "proxy": api.KindUnavailable, "forbidden": api.KindDenied, "half": api.KindUnavailable} {
		if _, err := c.Guest(t.Context(), name); kindOfError(err) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	cancel(cause)
	if _, err := c.Guest(ctx, "slow"); !errors.Is(err, cause) {
		t.Errorf("a cancelled call: %v", err)
	}
	nobody, err := New(Options{Host: "unix://" + filepath.Join(t.TempDir(), "none")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = nobody.Guest(t.Context(), "a")
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind != api.KindUnavailable || e.Hint != startHint {
		t.Errorf("nobody there: %#v", err)
	}
}

// TestNames checks that no name can be another route, and that an image's
// slashes stay.
func TestNames(t *testing.T) {
	var got string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.URL.EscapedPath()
		fmt.Fprint(w, "{}")
	})
	c.Guest(t.Context(), "a/../../host?x")
	if got != "/v1/guests/a%2F..%2F..%2Fhost%3Fx" {
		t.Errorf("guest: %s", got)
	}
	c.Image(t.Context(), "debian/12")
	if got != "/v1/images/debian/12" {
		t.Errorf("image: %s", got)
	}
}

// TestWait has an operation that fails between two looks.
func TestWait(t *testing.T) {
	looks := 0
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if looks++; looks == 1 {
			w.WriteHeader(202)
			json.NewEncoder(w).Encode(api.Operation{ID: "1", State: "working"})
			return
		}
		if r.URL.Query().Get("wait") == "" {
			json.NewEncoder(w).Encode(api.Operation{ID: "1", State: "failed", Problem: &api.Problem{Code: api.KindNoSpace}})
			return
		}
		w.Header().Set("Lodge-Operation", "1")
		w.WriteHeader(507)
		json.NewEncoder(w).Encode(api.Error{Kind: api.KindNoSpace, Detail: "full"})
	})
	op, err := c.Wait(t.Context(), api.Operation{ID: "1", State: "working"}, nil)
	if kindOfError(err) != api.KindNoSpace || op.ID != "1" || looks != 2 {
		t.Errorf("%+v, %v, %d looks", op, err, looks)
	}
	op, err = c.Operation(t.Context(), "1", time.Second)
	if err != nil || op.State != "failed" {
		t.Errorf("as a receipt: %+v, %v", op, err)
	}
	if err := OperationError(op); kindOfError(err) != api.KindNoSpace {
		t.Errorf("its error: %v", err)
	}
}

// TestEventsResume breaks the stream after every event.
func TestEventsResume(t *testing.T) {
	var asked []string
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("since")+"|"+r.Header.Get("Last-Event-ID"))
		n := len(asked)
		switch n {
		case 2:
			w.WriteHeader(503) // lodged restarts
		case 5:
			w.WriteHeader(409)
			json.NewEncoder(w).Encode(api.Error{Kind: api.KindConflict, Detail: "compacted"})
		default:
			fmt.Fprintf(w, ": comment\n\n")
			if n == 3 { // the last revision is told again, with what was not seen of it
				fmt.Fprint(w, "id: 11\ndata: {\"name\":\"e1\"}\n\nid: 11\ndata: {\"name\":\"twin\"}\n\n")
			}
			fmt.Fprintf(w, "id: %d\ndata: {\"name\":\ndata: \"e%d\"}\n\n", 10+n, n)
		}
	})
	var names []string
	var last error
	for e, err := range c.Events(t.Context(), EventOptions{Since: 5}) {
		if err != nil {
			last = err
			continue
		}
		names = append(names, fmt.Sprint(e.Name, e.Rev))
	}
	if got := strings.Join(names, " "); got != "e111 twin11 e313 e414" {
		t.Errorf("events %s", got)
	}
	if got := strings.Join(asked, " "); got != "5| |11 |11 |13 |14" {
		t.Errorf("asked for %s", got)
	}
	if kindOfError(last) != api.KindConflict {
		t.Errorf("ended with %v", last)
	}
}

// FuzzScanEvents: a stream of any bytes gives events or ends.
func FuzzScanEvents(f *testing.F) {
	f.Add([]byte("id: 5\ndata: {\"name\":\"a\"}\n\n"))
	f.Add([]byte(": comment\n\ndata\ndata:\ndata: {\n\nid: x\n\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		scanEvents(bytes.NewReader(b), func(api.Event) bool { n++; return true })
		if most := bytes.Count(b, []byte("data")); n > most {
			t.Errorf("%d events of %d", n, most)
		}
	})
}
