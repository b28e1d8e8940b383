package server

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"lodge/api"
	"lodge/api/client"
)

// The client that people have and the server understand each other.
func TestClient(t *testing.T) {
	h := newHouse(t)
	c, err := client.New(client.Options{Host: "unix://" + h.socket})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	if _, err := c.CreateGuest(ctx, api.GuestCreate{GuestSpec: api.GuestSpec{Name: "web2", Image: "debian/12"}}, time.Minute); err != nil {
		t.Fatal(err)
	}
	all, rev, err := c.Guests(ctx, "tier=web")
	if err != nil || len(all) != 1 || rev == 0 {
		t.Fatal(all, rev, err)
	}
	_, err = c.Guest(ctx, "nobody")
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind != api.KindNotFound || e.Ref != "guest/nobody" {
		t.Fatal(err)
	}
	if i, err := c.Image(ctx, "debian/12"); err != nil || !i.Ready {
		t.Fatal(i, err)
	}
	if op, err := c.ImportImage(ctx, "mine/1", strings.NewReader("tar"), client.ImageImport{MaxSize: 1000}, time.Minute); err != nil || op.State != "done" {
		t.Fatal(op, err)
	}
	if err := c.WriteFiles(ctx, "web1", "/tmp", strings.NewReader("tar")); err != nil || h.live.got.String() != "tar" {
		t.Fatal(err)
	}
	r, err := c.Logs(ctx, "web1", false, 5)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(r)
	r.Close()
	if err != nil || string(text) != "hello\n" {
		t.Fatal(string(text), err)
	}
	s, err := c.Exec(ctx, "web1", api.ExecRequest{Command: []string{"sh", "-c", "cat; exit 4"}})
	if err != nil {
		t.Fatal(err)
	}
	go s.CopyInput(ctx, strings.NewReader("in and out"))
	var out bytes.Buffer
	if code, err := s.Output(ctx, &out, io.Discard); err != nil || code != 4 || out.String() != "in and out" {
		t.Fatal(code, out.String(), err)
	}
	s.Close()
	if _, err := c.StartGuest(ctx, "web2", time.Minute); err != nil {
		t.Fatal(err)
	}
	for e, err := range c.Events(ctx, client.EventOptions{Since: rev, Kind: "guest"}) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == "web2" && e.Type == "changed" {
			break
		}
		t.Fatalf("%+v", e)
	}
}

// What waiting costs over the store: the request, the receipt, its end and the
// wake, all together.
func TestEveryWaitIsWoken(t *testing.T) {
	h := newHouse(t)
	const rounds = 200
	start := time.Now()
	for range rounds {
		want[api.Operation](h, 200, "POST", "/v1/guests/web1/restart?wait=30s", nil)
	}
	t.Logf("%v a verb that was waited for", time.Since(start)/rounds)
}
