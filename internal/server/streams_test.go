package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"lodge/api"
	"lodge/internal/model"
	"lodge/internal/model/operation"
	"lodge/internal/store/tables"
)

func (h *house) dial(path string) *websocket.Conn {
	h.Helper()
	c, _, err := websocket.Dial(h.Context(), "http://lodge"+path, &websocket.DialOptions{HTTPClient: h.client})
	if err != nil {
		h.Fatal(err)
	}
	c.SetReadLimit(1 << 20)
	h.Cleanup(func() { c.CloseNow() })
	return c
}

func (h *house) exec(r api.ExecRequest) *websocket.Conn {
	h.Helper()
	c := h.dial("/v1/guests/web1/exec")
	text, err := json.Marshal(r)
	if err != nil {
		h.Fatal(err)
	}
	if err := c.Write(h.Context(), websocket.MessageText, text); err != nil {
		h.Fatal(err)
	}
	return c
}

func (h *house) say(c *websocket.Conn, frame api.Frame, data string) {
	h.Helper()
	if err := c.Write(h.Context(), websocket.MessageBinary, append([]byte{frame}, data...)); err != nil {
		h.Fatal(err)
	}
}

// hear reads everything until the last control message.
func (h *house) hear(c *websocket.Conn) (out, errOut string, last api.Control) {
	h.Helper()
	var b [3]bytes.Buffer
	for {
		_, p, err := c.Read(h.Context())
		if err != nil {
			h.Fatal(err, b[1].String(), b[2].String())
		}
		if p[0] == api.FrameControl {
			if err := json.Unmarshal(p[1:], &last); err != nil {
				h.Fatal(err)
			}
			if _, _, err := c.Read(h.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
				h.Fatal(err)
			}
			return b[1].String(), b[2].String(), last
		}
		b[p[0]].Write(p[1:])
	}
}

func TestExec(t *testing.T) {
	h := newHouse(t)
	for name, c := range map[string]struct {
		request  api.ExecRequest
		input    string
		out, err string
		code     int
	}{
		"streams and status": {api.ExecRequest{Command: []string{"sh", "-c", "cat; echo bad >&2; exit 7"}}, "hello", "hello", "bad\n", 7},
		"no input":           {api.ExecRequest{Command: []string{"true"}}, "", "", "", 0},
		"much output":        {api.ExecRequest{Command: []string{"sh", "-c", "head -c 1000000 /dev/zero | tr '\\0' x"}}, "", strings.Repeat("x", 1000000), "", 0},
		"terminal":           {api.ExecRequest{Command: []string{"echo", "hi"}, TTY: true}, "", "hi\n", "", 0},
		// Something that is left behind holds the pipe, and holds up nobody.
		"left behind": {api.ExecRequest{Command: []string{"sh", "-c", "sleep 5 & echo gone"}}, "", "gone\n", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			h := &house{T: t, Server: h.Server, client: h.client}
			ws := h.exec(c.request)
			if c.input != "" {
				h.say(ws, api.FrameIn, c.input)
			}
			h.say(ws, api.FrameIn, "")
			out, errOut, last := h.hear(ws)
			if out != c.out || errOut != c.err || last.Exit == nil || *last.Exit != c.code {
				t.Fatalf("%d bytes, %q, %+v", len(out), errOut, last)
			}
		})
	}
}

// TestExecWithoutInput: nobody has to say that there is none.
func TestExecWithoutInput(t *testing.T) {
	h := newHouse(t)
	ws := h.exec(api.ExecRequest{Command: []string{"sh", "-c", "cat; echo end"}, NoInput: true})
	if out, _, last := h.hear(ws); out != "end\n" || last.Exit == nil || *last.Exit != 0 {
		t.Errorf("%q, %+v", out, last)
	}
	ws = h.exec(api.ExecRequest{Command: []string{"sh", "-c", "echo end"}, NoInput: true})
	h.say(ws, api.FrameIn, "what nobody reads")
	h.say(ws, api.FrameIn, "")
	if out, _, last := h.hear(ws); out != "end\n" || last.Exit == nil || *last.Exit != 0 {
		t.Errorf("with input: %q, %+v", out, last)
	}
	ws = h.exec(api.ExecRequest{Command: []string{"true"}, NoInput: true, TTY: true})
	if _, _, last := h.hear(ws); last.Error == nil || last.Error.Field != "no_input" {
		t.Errorf("on a terminal: %+v", last)
	}
}

func TestExecInAGuestThatBoots(t *testing.T) {
	h := newHouse(t)
	ws := h.exec(api.ExecRequest{Command: []string{"boots", "echo", "up"}, Wait: 60})
	var first api.Control
	_, p, err := ws.Read(t.Context())
	if err != nil || p[0] != api.FrameControl || json.Unmarshal(p[1:], &first) != nil || !strings.Contains(first.Note, "boots and does not answer yet") {
		t.Fatalf("%q, %v", p, err)
	}
	h.say(ws, api.FrameIn, "")
	if out, _, last := h.hear(ws); out != "up\n" || last.Exit == nil || *last.Exit != 0 {
		t.Errorf("%q %+v", out, last)
	}
	ws = h.exec(api.ExecRequest{Command: []string{"boots", "long"}})
	if _, _, last := h.hear(ws); last.Error == nil || last.Error.Kind != api.KindBusy || last.Error.Hint == "" {
		t.Errorf("without patience: %+v", last)
	}
	ws = h.exec(api.ExecRequest{Command: []string{"true"}, Wait: -1})
	if _, _, last := h.hear(ws); last.Error == nil || last.Error.Field != "wait" {
		t.Errorf("%+v", last)
	}
}

func TestExecSignal(t *testing.T) {
	h := newHouse(t)
	ws := h.exec(api.ExecRequest{Command: []string{"sh", "-c", "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.01; done"}})
	if _, p, err := ws.Read(t.Context()); err != nil || string(p[1:]) != "ready\n" {
		t.Fatal(string(p), err)
	}
	h.say(ws, api.FrameControl, `{"resize":{"rows":24,"cols":80}}`)
	h.say(ws, api.FrameControl, `{"signal":"USR1"}`)
	if out, _, last := h.hear(ws); out != "caught\n" || *last.Exit != 3 {
		t.Fatalf("%q %+v", out, last)
	}
}

func TestExecRefused(t *testing.T) {
	h := newHouse(t)
	for name, c := range map[string]struct {
		kind, field string
		message     string
	}{
		"nothing":       {"not-found", "command", `{"command":["nothing"]}`},
		"no command":    {"invalid", "command", `{"command":[]}`},
		"unknown field": {"invalid", "spec.argv", `{"argv":["x"]}`},
	} {
		ws := h.dial("/v1/guests/web1/exec")
		if err := ws.Write(t.Context(), websocket.MessageText, []byte(c.message)); err != nil {
			t.Fatal(err)
		}
		if _, _, last := h.hear(ws); last.Error == nil || last.Error.Kind != c.kind || last.Error.Field != c.field {
			t.Fatalf("%s: %+v", name, last.Error)
		}
	}
	_, resp, err := websocket.Dial(t.Context(), "http://lodge/v1/guests/nobody/exec", &websocket.DialOptions{HTTPClient: h.client})
	if err == nil || resp == nil || resp.StatusCode != http.StatusNotFound {
		t.Fatal(resp, err)
	}
}

// A client that goes takes its program with it, even one that reads nothing
// while input waits for it.
func TestExecEndsWithItsClient(t *testing.T) {
	h := newHouse(t)
	ws := h.exec(api.ExecRequest{Command: []string{"sh", "-c", "echo up; exec sleep 1000"}})
	if _, _, err := ws.Read(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.say(ws, api.FrameIn, strings.Repeat("x", 200_000))
	ws.CloseNow()
	<-h.live.killed
}

func TestConsole(t *testing.T) {
	h := newHouse(t)
	ws := h.dial("/v1/guests/web1/console")
	h.say(ws, api.FrameIn, "echo?")
	got := ""
	for got != "echo?" {
		_, p, err := ws.Read(t.Context())
		if err != nil || p[0] != api.FrameOut {
			t.Fatal(p, err)
		}
		got += string(p[1:])
	}
}

func TestFiles(t *testing.T) {
	h := newHouse(t)
	if resp, text := h.ask("GET", "/v1/guests/web1/files?path=/etc/hosts", nil); string(text) != "tar of /etc/hosts" || resp.Header.Get("Content-Type") != "application/x-tar" {
		t.Fatal(string(text))
	}
	resp, err := h.client.Get("http://lodge/v1/guests/web1/files?path=/half")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(resp.Body); err == nil {
		t.Fatalf("half a stream looks like a whole one: %q", text)
	}
	resp.Body.Close()
	body := strings.Repeat("t", 3<<20)
	if resp, text := h.ask("PUT", "/v1/guests/web1/files?path=/tmp", body); resp.StatusCode != http.StatusNoContent || h.live.got.String() != body {
		t.Fatal(resp.Status, string(text))
	}
	if _, text := h.ask("GET", "/v1/guests/web1/logs?follow=true&tail=5", nil); string(text) != "hello\n" {
		t.Fatal(string(text))
	}
}

// listen opens the event stream; next returns the next event.
func (h *house) events(query string, header ...string) (next func() api.Event, stop func()) {
	h.Helper()
	ctx, cancel := context.WithCancel(h.Context())
	req, _ := http.NewRequestWithContext(ctx, "GET", "http://lodge/v1/events"+query, nil)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := h.client.Do(req)
	if err != nil {
		h.Fatal(err)
	}
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		h.Fatal(resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func() api.Event {
		h.Helper()
		id := ""
		for lines.Scan() {
			if v, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
				id = v
			}
			if v, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var e api.Event
				if err := json.Unmarshal([]byte(v), &e); err != nil {
					h.Fatal(err)
				}
				if e.Rev > 0 && id != strconv.FormatInt(e.Rev, 10) {
					h.Fatal("id is not the revision", id, e.Rev)
				}
				return e
			}
		}
		h.Fatal("the stream ended", lines.Err())
		return api.Event{}
	}, func() { cancel(); resp.Body.Close() }
}

// settled returns once every operation so far has ended and its record says so:
// the house ends them beside the test.
func (h *house) settled() {
	h.Helper()
	open := func(op tables.OperationRecord) bool { return !op.Status.State.Final() }
	for deadline := time.Now().Add(10 * time.Second); slices.ContainsFunc(h.Tables.Operations.List(), open); {
		if time.Now().After(deadline) {
			h.Fatal("operations do not end")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestEvents(t *testing.T) {
	h := newHouse(t)
	h.settled()
	h.ends.Store(nil)
	since := int64(h.Store.Rev())
	next, stop := h.events("?since=" + strconv.FormatInt(since, 10))
	want[api.Operation](h, 202, "POST", "/v1/guests/web1/restart", nil)
	seen := map[string]api.Event{}
	for range 2 {
		e := next()
		seen[e.Kind] = e
	}
	var g api.Guest
	if err := json.Unmarshal(seen["guest"].Object, &g); err != nil || g.Name != "web1" || seen["guest"].Type != "changed" || seen["guest"].Message != "running" {
		t.Fatalf("%+v %v", seen, err)
	}
	if seen["operation"].Message != "guest.restart working" {
		t.Fatalf("%+v", seen["operation"])
	}
	h.Progress.Publish(operation.Progress{Subject: model.Key{Kind: "image", Name: "debian/12"}, Step: "unpacking", Done: 1, Total: 2})
	if e := next(); e.Type != "progress" || e.Progress.Step != "unpacking" || e.Rev != 0 || e.Name != "debian/12" {
		t.Fatalf("%+v", e)
	}
	stop()

	// What happened meanwhile is told to who resumes, and the last revision
	// once more.
	r, _ := h.Tables.Guests.Get("web1")
	if err := h.Tables.Guests.Delete(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	next, stop = h.events("?kind=guest", "Last-Event-ID", strconv.FormatInt(seen["guest"].Rev, 10))
	defer stop()
	if e := next(); e.Rev != seen["guest"].Rev {
		// The record is gone: the change to it cannot be shown any more.
		if e.Type != "deleted" || e.Name != "web1" {
			t.Fatalf("%+v", e)
		}
	}
}

func TestEventsOfAnotherStore(t *testing.T) {
	h := newHouse(t)
	e := want[api.Error](h, 409, "GET", "/v1/events?since=999999999", nil)
	if e.Kind != "conflict" || e.Field != "since" || !strings.Contains(e.Hint, "list everything again") {
		t.Fatalf("%+v", e)
	}
	want[api.Error](h, 422, "GET", "/v1/events", nil, "Last-Event-ID", "yesterday")
	want[api.Error](h, 422, "GET", "/v1/events?kind=unicorn", nil)
}

// Streams do not hold up the end of the server.
func TestStopWithOpenStreams(t *testing.T) {
	h := newHouse(t)
	_, stop := h.events("")
	t.Cleanup(stop)
	ws := h.exec(api.ExecRequest{Command: []string{"sleep", "1000"}})
	h.say(ws, api.FrameIn, "x")
	// The house's own cleanup ends the server now; it must not take the
	// stream's whole life.
}

func FuzzControl(f *testing.F) {
	for _, s := range []string{`{"signal":"INT"}`, `{"resize":{"rows":1,"cols":2}}`, `{"resize":{"rows":-1}}`, `{`, `{"signal":"NOSUCH"}`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		p := &program{}
		err := act(text, hands{resize: p.Resize, signal: func(os.Signal) error { return nil }})
		if err == nil && !json.Valid(text) {
			t.Fatalf("%q was taken", text)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"name":"a","image":"b","power":"on"}`, `{"cpus":"x"}`, `[]`, ``, `{"env":{"A":1}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, kind := range []string{"guest", "network", "pool", "forward", "image"} {
			it, err := itemOf(api.Manifest{Kind: kind, Spec: text})
			if err == nil && kind == "guest" && it.Guest == nil {
				t.Fatal("nothing was read")
			}
		}
	})
}
