package qga

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/engine/qemu/qga/qgatest"
)

func with(t *testing.T, a *qgatest.Agent) *Client {
	ours, theirs := qgatest.Line(t)
	go a.Serve(theirs)
	return New(ours)
}

func TestWhatItIs(t *testing.T) {
	c := with(t, &qgatest.Agent{Forbidden: "guest-exec"})
	i, err := c.Info(t.Context())
	if err != nil || i.Version != "7.2.22" || !i.Can("guest-set-time") || i.Can("guest-exec") || i.Can("guest-levitate") {
		t.Errorf("%+v, %v", i, err)
	}
	err = c.Do(t.Context(), "guest-levitate", nil, nil)
	if refused, ok := errors.AsType[*Error](err); !ok || refused.Command != "guest-levitate" || !strings.Contains(refused.Desc, "has not been found") {
		t.Errorf("%v", err)
	}
	if err := c.SetClock(t.Context(), time.Now()); err != nil {
		t.Errorf("after a refusal: %v", err)
	}
}

// TestAnEarlierSession: what it left behind in both directions is skipped.
func TestAnEarlierSession(t *testing.T) {
	ours, theirs := qgatest.Line(t)
	io.WriteString(ours, `{"execute": "guest-exec", "arguments": {"path": "/bin/f`)
	io.WriteString(theirs, `ata": "AAAA"}}`+"\n\xff{\"return\": 7}\n"+`{"return": {"version": "1"}}`+"\n"+strings.Repeat("x", 3<<10))
	a := &qgatest.Agent{}
	go a.Serve(theirs)
	if i, err := New(ours).Info(t.Context()); err != nil || i.Version != "7.2.22" {
		t.Errorf("%+v, %v", i, err)
	}
	if heard := a.Heard(); !slices.Equal(heard, []string{"guest-sync-delimited", "guest-info"}) {
		t.Errorf("it heard %v", heard)
	}
}

func TestAddressesOfTheGuestsCards(t *testing.T) {
	const mine = `{"name": "eth0", "hardware-address": "02:00:00:00:00:01", "ip-addresses": [
		{"ip-address-type": "ipv4", "ip-address": "10.1.2.3", "prefix": 24}, {"ip-address": "fe80::1"}, {"ip-address": "fd00::7"}, {"ip-address": "10.1.2.3"},
		{"ip-address": "127.0.0.1"}, {"ip-address": "0.0.0.0"}, {"ip-address": "224.0.0.1"}, {"ip-address": "fd00::8%eth0"}, {"ip-address": "x; rm"}]}`
	for name, c := range map[string]struct {
		says string
		want []string
	}{
		"nothing":      {`[]`, nil},
		"the loopback": {`[{"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}]}]`, nil},
		"its card":     {`[` + mine + `]`, []string{"10.1.2.3", "fd00::7"}},
		"a bridge":     {`[{"name": "docker0", "hardware-address": "02:42:00:00:00:01", "ip-addresses": [{"ip-address": "172.17.0.1"}]}]`, nil},
		"too many":     {`[{"hardware-address": "02:00:00:00:00:01", "ip-addresses": [` + many(1000) + `]}]`, nil},
	} {
		got, err := with(t, &qgatest.Agent{Interfaces: c.says}).Addresses(t.Context(), []string{"02:00:00:00:00:01"})
		if name == "too many" {
			if len(got) != addressesMax {
				t.Errorf("%d addresses", len(got))
			}
			continue
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func many(n int) string {
	var all []string
	for i := range n {
		all = append(all, `{"ip-address": "10.0.`+string(rune('0'+i/100))+`.`+string(rune('0'+i/10%10))+string(rune('0'+i%10))+`"}`)
	}
	return strings.Join(all, ",")
}

func TestProgramsAndFiles(t *testing.T) {
	c := with(t, &qgatest.Agent{})
	run := func(p Program) Result {
		pid, err := c.Start(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		for {
			r, err := c.Result(t.Context(), pid)
			if err != nil {
				t.Fatal(err)
			}
			if r.Exited {
				return r
			}
		}
	}
	r := run(Program{Path: "sh", Args: []string{"-c", "cat; echo $A >&2; exit 7"}, Env: []string{"A=b"}, Input: []byte("in"), Capture: true})
	if r.Status != 7 || string(r.Out) != "in" || string(r.Err) != "b\n" {
		t.Errorf("%+v", r)
	}
	if r := run(Program{Path: "sh", Args: []string{"-c", "kill -9 $$"}}); r.Status != 137 {
		t.Errorf("killed, its status is %d", r.Status)
	}
	if _, err := c.Start(t.Context(), Program{Path: "/no/such"}); err == nil {
		t.Error("what is not there runs")
	}
	if _, err := c.Result(t.Context(), 1<<40); err == nil {
		t.Error("what never ran has ended")
	}
	name, content := filepath.Join(t.TempDir(), "f"), bytes.Repeat([]byte("0123456789"), 50_000)
	f, err := c.Open(t.Context(), name, "w")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := f.Write(content); n != len(content) || err != nil || f.Close() != nil {
		t.Errorf("%d, %v", n, err)
	}
	if f, err = c.Open(t.Context(), name, "r"); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) || f.Close() != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestRest(t *testing.T) {
	a := &qgatest.Agent{Systems: 3}
	c := with(t, a)
	if n, err := c.Freeze(t.Context()); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if f, err := c.Frozen(t.Context()); !f || err != nil {
		t.Errorf("%v, %v", f, err)
	}
	if n, err := c.Thaw(t.Context()); n != 3 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if err := c.PowerOff(t.Context()); err != nil { // to which nothing is said
		t.Error(err)
	}
	if f, err := c.Frozen(t.Context()); f || err != nil {
		t.Errorf("%v, %v", f, err)
	}
	if heard := a.Heard(); !slices.Contains(heard, "guest-shutdown") {
		t.Errorf("it heard %v", heard)
	}
}

// TestBadCompany: an agent that does what it should not costs one command, and
// the next may do better.
func TestBadCompany(t *testing.T) {
	for name, says := range map[string]string{
		"garbage":                "garbage\n",
		"no reply":               "{}\n",
		"a reply of no sense":    `{"return": 17}` + "\n",
		"an array":               "[1]\n",
		"a reply of no end":      `{"return": {"version": "` + strings.Repeat("x", replyMax) + `"}}` + "\n",
		"a refusal of no end":    `{"error": {"class": "x", "desc": "` + strings.Repeat("\u001b", 10_000) + `"}}` + "\n",
		"a sync nobody asked":    "\xff" + `{"return": 1}` + "\n",
		"a refusal of no object": `{"error": 7}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			once := true
			c := with(t, &qgatest.Agent{Instead: func(command string) string {
				if command == "guest-info" && once {
					once = false
					return says
				}
				return ""
			}})
			_, err := c.Info(t.Context())
			if err == nil {
				t.Error("it counts as an answer")
			}
			if refused, ok := errors.AsType[*Error](err); ok && (len(refused.Desc) > wordsMax || strings.Contains(refused.Desc, "\x1b")) {
				t.Errorf("%d bytes of a refusal", len(refused.Desc))
			} else if !ok && !errs.Is(err, errs.Busy) {
				t.Errorf("%v", err)
			}
			if _, err := c.Info(t.Context()); err != nil {
				t.Errorf("the next: %v", err)
			}
		})
	}
}

func TestSilence(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := with(t, &qgatest.Agent{Instead: func(string) string { cancel(); return " " }})
	if _, err := c.Info(ctx); !errs.Is(err, errs.Busy) {
		t.Errorf("%v", err)
	}
	ours, theirs := qgatest.Line(t)
	c = New(ours)
	theirs.Close()
	if _, err := c.Info(t.Context()); !errs.Is(err, errs.Busy) {
		t.Errorf("%v", err)
	}
}

// TestFlood: an agent that never stops talking is given up on.
func TestFlood(t *testing.T) {
	ours, theirs := qgatest.Line(t)
	go io.Copy(io.Discard, theirs)
	go func() {
		b := bytes.Repeat([]byte("flood "), 10_000)
		for {
			if _, err := theirs.Write(b); err != nil {
				return
			}
		}
	}()
	if _, err := New(ours).Info(t.Context()); !errs.Is(err, errs.Busy) {
		t.Errorf("%v", err)
	}
}

// FuzzAgent: whatever an agent says, every command ends, and nothing is taken
// over that has no bounds.
func FuzzAgent(f *testing.F) {
	f.Add([]byte(`{"return": {"version": "7", "supported_commands": [{"name": "guest-exec", "enabled": true}]}}`))
	f.Add([]byte(`{"return": [{"hardware-address": "02:00:00:00:00:01", "ip-addresses": [{"ip-address": "10.0.0.1"}]}]}`))
	f.Add([]byte(`{"return": {"exited": true, "exitcode": -1, "signal": 99, "out-data": "QUJD", "count": 9, "buf-b64": "QQ==", "pid": -5}}`))
	f.Add([]byte("\xff\xff{\"return\":\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		ours, theirs := qgatest.Line(t)
		a := &qgatest.Agent{Instead: func(command string) string {
			if command == "guest-sync-delimited" {
				return ""
			}
			return string(says) + "\n"
		}}
		go a.Serve(theirs)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c := New(ours)
		if all, _ := c.Addresses(ctx, []string{"02:00:00:00:00:01"}); len(all) > addressesMax {
			t.Errorf("%d addresses", len(all))
		}
		if i, err := c.Info(ctx); err == nil && len(i.Version) > wordsMax {
			t.Errorf("%d bytes of a version", len(i.Version))
		}
		if r, err := c.Result(ctx, 1); err == nil && (r.Status < 0 || r.Status > 255) {
			t.Errorf("status %d", r.Status)
		}
		file := &File{c: c, ctx: ctx}
		if n, err := file.Read(make([]byte, 10)); n > 10 || n == 0 && err == nil {
			t.Errorf("read %d, %v", n, err)
		}
	})
}
