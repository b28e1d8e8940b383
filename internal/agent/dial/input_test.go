package dial

import (
	"bytes"
	"math/rand"
	"testing"
	"time"

	"lodge/internal/agent"
	"lodge/internal/base/session"
)

// TestLongInput sends a program more than any window or slot holds, in pieces of
// all sizes, and gets it back.
func TestLongInput(t *testing.T) {
	each(t, func(t *testing.T, h *house) {
		want := make([]byte, 5<<20)
		r := rand.New(rand.NewSource(1))
		r.Read(want)
		for range 2 {
			code, out, _, err := outcome(t, h.Link, session.Request{Argv: []string{"cat"}}, bytes.NewReader(want))
			if err != nil || code != 0 || out != string(want) {
				t.Fatalf("%d bytes of %d came back, status %d, %v", len(out), len(want), code, err)
			}
		}
		for ctx := patiently(t); h.mail != nil && len(h.slots) != cap(h.slots); time.Sleep(time.Millisecond) {
			if ctx.Err() != nil {
				t.Fatalf("%d slots of %d are left", len(h.slots), cap(h.slots))
			}
		}
	})
}

// TestSlotsAreSpared leaves slots for files however many programs have input.
func TestSlotsAreSpared(t *testing.T) {
	s := newSlots(8)
	for range 5 {
		s.spare()
	}
	if len(s) != spareLeft || len(s.take()) != slotsEach {
		t.Errorf("%d slots are left", len(s))
	}
}

// TestLetters refuses slots that a stream does not have.
func TestLetters(t *testing.T) {
	f, _ := mailbox(t)
	m, err := agent.NewMailbox(f)
	must(t, err)
	for _, c := range []struct {
		numbers []uint32
		want    bool
	}{
		{[]uint32{3, 100}, true}, {[]uint32{3, agent.ExecWindow}, true}, {[]uint32{3, agent.ExecWindow + 1}, false}, {[]uint32{3, 0}, false},
		{[]uint32{2, 100}, false}, {[]uint32{1 << 31, 100}, false}, {[]uint32{3}, false}, {nil, false},
	} {
		var said bytes.Buffer
		l := agent.NewLetters(&said, m, []int{3})
		is := l.Open(numbers(agent.KindSlot, c.numbers...)[5:], func(b []byte) bool { return len(b) == int(c.numbers[1]) })
		if is != c.want || (said.Len() > 0) != c.want {
			t.Errorf("%v: %v, %d bytes were answered", c.numbers, is, said.Len())
		}
	}
	if agent.NewLetters(&bytes.Buffer{}, nil, nil).Open(numbers(agent.KindSlot, 0, 1)[5:], nil) {
		t.Error("a slot of no mailbox was opened")
	}
}
