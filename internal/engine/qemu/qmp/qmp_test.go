package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pair returns both ends of a monitor's line.
func pair(t testing.TB) (ours, theirs *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "monitor")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

// request is a command as QEMU reads it.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        string          `json:"id"`
}

// imitate serves a monitor the way QEMU does: once it was negotiated with, it
// says that it was. answer makes the rest of a reply: `"return": {}`.
func imitate(conn *net.UnixConn, negotiated bool, answer func(r request) string) {
	r := bufio.NewReader(conn)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		if strings.HasPrefix(line, reset) {
			fmt.Fprintf(conn, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"JSON parse error\"}}\r\n")
			line = line[len(reset):]
		}
		var q request
		if json.Unmarshal([]byte(line), &q) != nil {
			continue
		}
		reply := `"return": {}`
		switch {
		case q.Execute == "qmp_capabilities" && negotiated:
			reply = `"error": {"class": "CommandNotFound", "desc": "Capabilities negotiation is already complete, command ignored"}`
		case q.Execute == "qmp_capabilities":
			negotiated = true
		default:
			reply = answer(q)
		}
		if reply != "" {
			fmt.Fprintf(conn, "{%s, \"id\": %q}\r\n", reply, q.ID)
		}
	}
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}` + "\r\n"

func open(t *testing.T, ours *net.UnixConn, event func(Event)) *Client {
	t.Helper()
	c, err := Open(t.Context(), ours, event)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestASessionFromTheStart(t *testing.T) {
	ours, theirs := pair(t)
	io.WriteString(theirs, greeting)
	seen := make(chan Event, 1)
	go imitate(theirs, false, func(q request) string {
		switch q.Execute {
		case "query-status":
			io.WriteString(theirs, `{"event": "STOP", "timestamp": {"seconds": 1}}`+"\r\n")
			return `"return": {"status": "paused"}`
		}
		return `"error": {"class": "GenericError", "desc": "no such thing"}`
	})
	c := open(t, ours, func(e Event) { seen <- e })
	var status struct{ Status string }
	if err := c.Do(t.Context(), "query-status", nil, &status); err != nil || status.Status != "paused" {
		t.Errorf("%+v, %v", status, err)
	}
	if e := <-seen; e.Name != "STOP" || e.At.Unix() != 1 {
		t.Errorf("the event is %+v", e)
	}
	err := c.Do(t.Context(), "device_del", map[string]any{"id": "x"}, nil)
	if refused, ok := errors.AsType[*Error](err); !ok || refused.Desc != "no such thing" || refused.Command != "device_del" {
		t.Errorf("a refusal is %v", err)
	}
}

// TestASessionThatGoesOn: what an earlier daemon left in both directions is
// skipped, whole and half.
func TestASessionThatGoesOn(t *testing.T) {
	ours, theirs := pair(t)
	io.WriteString(ours, `{"execute": "query-cpus-fast", "id": "earl`)
	io.WriteString(theirs, `atus": "running"}, "id": "earlier/7"}`+"\r\n"+`{"return": {}, "id": "earlier/8"}`+"\r\n")
	go func() {
		half := make([]byte, len(`{"execute": "query-cpus-fast", "id": "earl`))
		io.ReadFull(theirs, half)
		imitate(theirs, true, func(request) string { return `"return": {"n": 3}` })
	}()
	c := open(t, ours, nil)
	var r struct{ N int }
	if err := c.Do(t.Context(), "anything", nil, &r); err != nil || r.N != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestRepliesFindWhoeverAsked(t *testing.T) {
	ours, theirs := pair(t)
	io.WriteString(theirs, greeting)
	go imitate(theirs, false, func(q request) string { return `"return": ` + string(q.Arguments) })
	c := open(t, ours, nil)
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			var r struct{ I int }
			if err := c.Do(context.Background(), "echo", map[string]int{"i": i}, &r); err != nil || r.I != i {
				t.Errorf("asked with %d, answered %d, %v", i, r.I, err)
			}
		})
	}
	all.Wait()
}

func TestOpenFilesGoAlong(t *testing.T) {
	ours, theirs := pair(t)
	got := make(chan string, 1)
	go func() {
		io.WriteString(theirs, greeting)
		b, oob := make([]byte, 4096), make([]byte, 64)
		for {
			n, nc, _, _, err := theirs.ReadMsgUnix(b, oob)
			if err != nil {
				return
			}
			if nc > 0 {
				m, _ := unix.ParseSocketControlMessage(oob[:nc])
				fds, _ := unix.ParseUnixRights(&m[0])
				f := os.NewFile(uintptr(fds[0]), "got")
				text, _ := io.ReadAll(f)
				f.Close()
				got <- string(text)
			}
			for line := range strings.Lines(strings.TrimPrefix(string(b[:n]), reset)) {
				var q request
				if json.Unmarshal([]byte(line), &q) == nil {
					fmt.Fprintf(theirs, `{"return": {"fdset-id": 5}, "id": %q}`+"\r\n", q.ID)
				}
			}
		}
	}()
	c := open(t, ours, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	io.WriteString(w, "through the line")
	w.Close()
	if n, err := c.AddFile(t.Context(), "a pipe", r); n != 5 || err != nil {
		t.Errorf("set %d, %v", n, err)
	}
	if text := <-got; text != "through the line" {
		t.Errorf("QEMU read %q from the file", text)
	}
}

func TestBadCompany(t *testing.T) {
	for name, says := range map[string]string{
		"hangs up":             "",
		"garbage":              "garbage\r\n",
		"a message of no end":  strings.Repeat("x", messageMax+2),
		"half a message":       `{"return": {`,
		"a reply of no sense":  `{"return": 17, "id": "%s"}` + "\r\n",
		"an array for objects": "[1,2,3]\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := pair(t)
			io.WriteString(theirs, greeting)
			asked := make(chan string, 1)
			go imitate(theirs, false, func(q request) string { asked <- q.ID; return "" })
			c := open(t, ours, nil)
			go func() {
				id := <-asked
				io.WriteString(theirs, strings.Replace(says, "%s", id, 1))
				theirs.Close()
			}()
			var r struct{ A string }
			if err := c.Do(t.Context(), "x", nil, &r); err == nil {
				t.Error("it counts as an answer")
			}
			<-c.Done()
			if c.Err() == nil || c.Do(t.Context(), "y", nil, nil) == nil {
				t.Error("the session is over and does not say so")
			}
		})
	}
}

func TestSilence(t *testing.T) {
	ours, theirs := pair(t)
	io.WriteString(theirs, greeting)
	ctx, cancel := context.WithCancel(t.Context())
	go imitate(theirs, false, func(request) string { cancel(); return "" })
	c := open(t, ours, nil)
	if err := c.Do(ctx, "x", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// FuzzRead: whatever QEMU writes, the session ends or goes on, and whoever
// waits is answered.
func FuzzRead(f *testing.F) {
	f.Add([]byte(greeting))
	f.Add([]byte(`{"return": {}, "id": "a/1"}` + "\r\n" + `{"event": "SHUTDOWN", "data": {"guest": true}}` + "\n"))
	f.Add([]byte("\xff{}\n[]\n{\"id\": 7}\n{\"error\": {}}\n"))
	f.Fuzz(func(t *testing.T, says []byte) {
		ours, theirs := pair(t)
		go func() {
			theirs.Write(says)
			theirs.CloseWrite()
			io.Copy(io.Discard, theirs)
		}()
		c, err := Open(t.Context(), ours, func(Event) {})
		if err == nil {
			err = c.Do(t.Context(), "query-status", nil, nil)
			c.Close()
		}
		if err == nil {
			t.Error("an answer to an id that cannot be guessed")
		}
	})
}

// TestDeaf has QEMU read nothing any more: the session ends, and nobody waits
// for ever.
func TestDeaf(t *testing.T) {
	ours, theirs := pair(t)
	deaf := make(chan struct{})
	go imitate(theirs, true, func(request) string {
		<-deaf // it reads no further
		return ""
	})
	c, err := Open(t.Context(), ours, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer close(deaf)
	defer c.Close()
	c.patience = 20 * time.Millisecond
	given, cancel := context.WithCancel(t.Context())
	cancel()
	for c.Err() == nil {
		_ = c.Do(given, "query-status", strings.Repeat("x", 4096), nil)
	}
	if err := c.Do(t.Context(), "query-status", nil, nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("in a session that ended: %v", err)
	}
}

// TestFlood has QEMU say much: it is heard out, at its pace.
func TestFlood(t *testing.T) {
	ours, theirs := pair(t)
	go imitate(theirs, true, func(request) string {
		for range 3 * messageRate / 2 {
			fmt.Fprintf(theirs, "{\"event\": \"STOP\", \"data\": {}}\r\n")
		}
		return `"return": {}`
	})
	heard := 0
	c, err := Open(t.Context(), ours, func(Event) { heard++ })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Do(t.Context(), "query-status", nil, nil); err != nil || heard != 3*messageRate/2 {
		t.Errorf("heard %d events: %v", heard, err)
	}
}
