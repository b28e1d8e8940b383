package server

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"lodge/api"
	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
)

// fakeScreens shows one picture and echoes what is typed.
type fakeScreens struct{}

func (*fakeScreens) Screenshot(_ context.Context, _ string, w io.Writer) error {
	_, err := io.WriteString(w, "\x89PNG picture")
	return err
}

func (*fakeScreens) SendKeys(_ context.Context, _ string, chords [][]string) error {
	if chords[0][0] == "nokey" {
		return errs.Bad("keys", "nokey is no key", "use ctrl, alt, delete")
	}
	return nil
}

func (*fakeScreens) Display(context.Context, string) (io.ReadWriteCloser, error) {
	mine, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		io.WriteString(theirs, "RFB 003.008\n")
		io.Copy(theirs, theirs)
	}()
	return mine, nil
}

func (*fakeScreens) Debug(_ context.Context, _, what string, w io.Writer) error {
	switch what {
	case "nmi":
		return nil
	case "stack":
		_, err := io.WriteString(w, "task init\n")
		return err
	}
	return errs.Bad("what", "engine toy knows no "+what, "use one of: nmi, stack")
}

func explained(context.Context, string) (guest.Explanation, error) {
	return guest.Explanation{Phase: guest.Running, Goal: guest.Running, Seen: "running", Wanted: "running", Next: "nothing"}, nil
}

func probed(context.Context) ([]api.Engine, error) {
	return []api.Engine{{Name: "toy", Model: "os", Usable: true, Can: map[string]bool{}}}, nil
}

func TestTickets(t *testing.T) {
	now := time.Unix(1000, 0)
	k := newTickets(func() time.Time { return now })
	a, expires, err := k.issue("g1")
	if err != nil || expires.Sub(now) != ticketLife {
		t.Fatal(err, expires)
	}
	if k.redeem(a, "g2") || k.redeem("", "g1") || k.redeem("x", "") {
		t.Error("a ticket opened what it is not for")
	}
	if !k.redeem(a, "g1") || k.redeem(a, "g1") {
		t.Error("a ticket is good once")
	}
	b, _, _ := k.issue("g1")
	now = now.Add(ticketLife + time.Nanosecond)
	if k.redeem(b, "g1") {
		t.Error("an old ticket is good")
	}
	for range maxTickets {
		if _, _, err := k.issue("g1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := k.issue("g1"); !errs.Is(err, errs.Busy) {
		t.Errorf("tickets without end: %v", err)
	}
	now = now.Add(time.Hour)
	if _, _, err := k.issue("g1"); err != nil || len(k.all) != 1 {
		t.Errorf("old tickets are kept: %d, %v", len(k.all), err)
	}
}

func TestDisplay(t *testing.T) {
	h := newHouse(t)
	k := want[api.DisplayTicket](h, 200, "POST", "/v1/guests/web1/display", nil)
	ws := h.dial("/v1/guests/web1/display?ticket=" + k.Ticket)
	if kind, p, err := ws.Read(t.Context()); err != nil || kind != websocket.MessageBinary || string(p) != "RFB 003.008\n" {
		t.Fatal(kind, string(p), err)
	}
	if err := ws.Write(t.Context(), websocket.MessageBinary, []byte("RFB 003.008\n")); err != nil {
		t.Fatal(err)
	}
	if _, p, err := ws.Read(t.Context()); err != nil || string(p) != "RFB 003.008\n" {
		t.Fatal(string(p), err)
	}
	ws.Close(websocket.StatusNormalClosure, "")
	for _, path := range []string{"/v1/guests/web1/display?ticket=" + k.Ticket, "/v1/guests/web1/display?ticket=x", "/v1/guests/none/display?ticket=x"} {
		if e := want[api.Error](h, 403, "GET", path, nil); e.Kind != api.KindDenied || e.Field != "ticket" {
			t.Errorf("%s: %+v", path, e)
		}
	}
}

// TestTicketInsteadOfToken: only the one route takes a ticket, and it is still
// to be a good one.
func TestTicketInsteadOfToken(t *testing.T) {
	h := newHouse(t)
	front := h.guarded()
	status := func(path string) int {
		w := httptest.NewRecorder()
		front.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code
	}
	for path, want := range map[string]int{
		"/v1/guests/web1/display?ticket=x":     http.StatusForbidden,
		"/v1/guests/web1/display":              http.StatusUnauthorized,
		"/v1/guests/web1/display?ticket=":      http.StatusUnauthorized,
		"/v1/guests/web1?ticket=x":             http.StatusUnauthorized,
		"/v1/images/a/display?ticket=x":        http.StatusUnauthorized,
		"/v1/guests/web1/x/display?ticket=x":   http.StatusUnauthorized,
		"/v1/guests/web1/screenshot?ticket=x":  http.StatusUnauthorized,
		"/v1/guests/../images/display?ticket=": http.StatusUnauthorized,
		"/v1/guests/web1%2Fdisplay?ticket=x":   http.StatusUnauthorized,
		"/v1/guests%2Fweb1/display?ticket=x":   http.StatusUnauthorized,
	} {
		if got := status(path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
}

func answer(h *house, method, path string, body any) (int, string) {
	h.Helper()
	resp, text := h.ask(method, path, body)
	return resp.StatusCode, string(text)
}

func TestScreenAndKeys(t *testing.T) {
	h := newHouse(t)
	status, body := answer(h, "GET", "/v1/guests/web1/screenshot", nil)
	if status != 200 || !strings.HasPrefix(body, "\x89PNG") {
		t.Fatal(status, body)
	}
	if status, body = answer(h, "POST", "/v1/guests/web1/keys", api.Keys{Chords: [][]string{{"ctrl", "alt", "delete"}}}); status != 204 {
		t.Error(status, body)
	}
	for _, chords := range [][][]string{{}, {{}}, {make([]string, maxChord+1)}, make([][]string, maxChords+1), {{"nokey"}}} {
		if status, body = answer(h, "POST", "/v1/guests/web1/keys", api.Keys{Chords: chords}); status != 422 {
			t.Errorf("%d chords: %d %s", len(chords), status, body)
		}
	}
	if status, body = answer(h, "POST", "/v1/guests/web1/debug?what=stack", nil); status != 200 || body != "task init\n" {
		t.Error(status, body)
	}
	if status, body = answer(h, "POST", "/v1/guests/web1/debug?what=nmi", nil); status != 200 || body != "" {
		t.Error(status, body)
	}
	if e := want[api.Error](h, 422, "POST", "/v1/guests/web1/debug?what=fire", nil); e.Field != "what" || e.Hint == "" {
		t.Errorf("%+v", e)
	}
}

func TestExplainAndEngines(t *testing.T) {
	h := newHouse(t)
	if x := want[api.Explanation](h, 200, "GET", "/v1/guests/web1/explain", nil); x.Name != "web1" || x.Next != "nothing" {
		t.Errorf("%+v", x)
	}
	if all := want[[]api.Engine](h, 200, "GET", "/v1/engines", nil); all == nil {
		t.Error("no list of engines")
	}
	if all := want[[]api.Engine](h, 200, "POST", "/v1/engine-probes", nil); len(all) != 1 || all[0].Name != "toy" {
		t.Errorf("%+v", all)
	}
	if e := want[api.Error](h, 404, "GET", "/v1/engines/none", nil); e.Ref != "engine/none" {
		t.Errorf("%+v", e)
	}
}

func TestDevices(t *testing.T) {
	h := newHouse(t)
	if e := want[api.Error](h, 422, "POST", "/v1/guests/web1/disks", api.Disk{Name: "data", SizeBytes: 1 << 30}); e.Field != "disks" {
		t.Errorf("a disk for a guest on the host's kernel: %+v", e)
	}
	if e := want[api.Error](h, 404, "DELETE", "/v1/guests/web1/disks/data", nil); e.Field != "disk" {
		t.Errorf("%+v", e)
	}
	if e := want[api.Error](h, 404, "POST", "/v1/guests/web1/nics", api.NICAttach{Network: "lab"}); e.Field != "network" {
		t.Errorf("%+v", e)
	}
	if e := want[api.Error](h, 404, "DELETE", "/v1/guests/web1/nics/eth7", nil); e.Field != "nic" {
		t.Errorf("%+v", e)
	}
}
