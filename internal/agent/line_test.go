package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"
)

// told is all that a reader finds: data in one piece between words.
type told struct {
	data []byte
	word Word
}

func hear(t *testing.T, r io.Reader) []told {
	t.Helper()
	var out []told
	l := NewReader(r)
	for {
		data, w, err := l.Next()
		switch {
		case err != nil:
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatal(err)
			}
			return out
		case w.Kind != 0:
			out = append(out, told{word: w})
		case len(out) > 0 && out[len(out)-1].word.Kind == 0:
			out[len(out)-1].data = append(out[len(out)-1].data, data...)
		default:
			out = append(out, told{data: bytes.Clone(data)})
		}
	}
}

func equal(a, b []told) bool {
	return slices.EqualFunc(a, b, func(x, y told) bool { return bytes.Equal(x.data, y.data) && x.word == y.word })
}

func TestLineTellsDataFromWords(t *testing.T) {
	mark, credit := Word{Mark, Number(0xabc)}, Word{Credit, Number(77)}
	data := bytes.Repeat([]byte("some \xf5 data \xf5\xf5 and M "), 9000)
	b := AppendData(AppendWord(AppendData(AppendWord(nil, mark), data), credit), []byte("\xf5"))
	want := []told{{word: mark}, {data: data}, {word: credit}, {data: []byte{0xf5}}}
	for name, r := range map[string]io.Reader{"at once": bytes.NewReader(b), "by bytes": iotest.OneByteReader(bytes.NewReader(b)), "by halves": iotest.HalfReader(bytes.NewReader(b))} {
		if got := hear(t, r); !equal(got, want) {
			t.Errorf("%s: %d parts", name, len(got))
		}
	}
}

// TestAWordIsHeardAfterAnything: what was cut off does not hide what follows.
func TestAWordIsHeardAfterAnything(t *testing.T) {
	w := Word{Mark, Number(1)}
	whole := AppendWord(nil, Word{Go, Number(2)})
	for cut := range whole {
		got := hear(t, bytes.NewReader(AppendWord(append(bytes.Clone(whole[:cut]), spacer), w)))
		if len(got) == 0 || got[len(got)-1].word != w {
			t.Errorf("after %d bytes of another word: %v", cut, got)
		}
	}
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("plain"), []byte{0xf5})
	f.Add(AppendWord(nil, Word{Answer, Number(5)}), []byte("x\xf5My"))
	f.Add(bytes.Repeat([]byte{0xf5, 'M'}, 100), []byte{})
	f.Fuzz(func(t *testing.T, junk, data []byte) {
		a := hear(t, bytes.NewReader(junk))
		if b := hear(t, iotest.OneByteReader(bytes.NewReader(junk))); !equal(a, b) {
			t.Errorf("the pieces in which it comes matter: %v, %v", a, b)
		}
		if len(data) == 0 {
			return
		}
		w := Word{Start, Number(9)}
		got := hear(t, bytes.NewReader(AppendData(AppendWord(append(bytes.Clone(junk), spacer), w), data)))
		if n := len(got); n < 2 || got[n-2].word != w || !bytes.Equal(got[n-1].data, data) {
			t.Errorf("after %q: %v", junk, got)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(AppendFrame(AppendFrame(nil, KindOut, []byte("x")), KindResult, []byte("{}")))
	f.Add([]byte{'r', 0xff, 0xff, 0xff, 0x7f})
	f.Add(AppendFrame(nil, KindSlot, []byte{0, 0, 0, 0, 1, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewFrames(bytes.NewReader(b))
		var again []byte
		for {
			k, payload, err := r.Next()
			if err != nil {
				break
			}
			if len(payload) > RequestMax || cap(r.buf) > 4*RequestMax {
				t.Fatalf("%d bytes", len(payload))
			}
			again = AppendFrame(again, k, payload)
			_, _ = Numbers(payload, 2)
			if q, err := ParseRequest(payload); err == nil && q.Config != nil {
				_ = q.Config.Hostname
			}
			if r, err := ParseResult(payload); err == nil {
				_ = r.Error.Err()
			}
		}
		if !bytes.HasPrefix(b, again) {
			t.Error("frames were made up")
		}
	})
}

// FuzzInflow reads files from streams that lie, with a mailbox and without.
func FuzzInflow(f *testing.F) {
	f.Add(AppendFrame(AppendFrame(nil, KindOut, []byte("text")), KindOut, nil))
	f.Add(AppendFrame(AppendFrame(nil, KindSlot, binary.LittleEndian.AppendUint32([]byte{1, 0, 0, 0}, 5000)), KindOut, nil))
	f.Add(AppendFrame(nil, KindSlot, binary.LittleEndian.AppendUint32([]byte{9, 0, 0, 0}, 5000)))
	f.Add(AppendFrame(nil, KindResult, []byte(`{"error":{"kind":"busy"}}`)))
	name := filepath.Join(f.TempDir(), "mailbox")
	if err := os.WriteFile(name, make([]byte, 2*SlotSize), 0o600); err != nil {
		f.Fatal(err)
	}
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { file.Close() })
	m, err := NewMailbox(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, mail := range []*Mailbox{nil, m} {
			in := NewInflow(io.Discard, NewFrames(bytes.NewReader(b)), KindOut, mail, []int{1})
			n, err := io.Copy(io.Discard, in)
			if err == nil && in.Result() == nil && n > int64(len(b))*SlotSize {
				t.Errorf("%d bytes of %d", n, len(b))
			}
			out := NewOutflow(io.Discard, KindIn, mail, []int{1})
			_ = out.Freed(b)
		}
	})
}

func TestFilesThroughTheMailbox(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mailbox")
	must(t, os.WriteFile(name, make([]byte, 4*SlotSize), 0o600))
	file, err := os.OpenFile(name, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	m, err := NewMailbox(file)
	must(t, err)
	for _, size := range []int{0, 1, slotWorth, SlotSize - 1, SlotSize, SlotSize + 1, 7*SlotSize + 4321} {
		for _, mail := range []*Mailbox{nil, m} {
			data := make([]byte, size)
			for i := range data {
				data[i] = byte(i * 7 >> 3)
			}
			a, b := net.Pipe()
			slots := []int{1, 3}
			out, in := NewOutflow(a, KindOut, mail, slots), NewInflow(b, NewFrames(b), KindOut, mail, slots)
			go func() {
				for f := NewFrames(a); ; {
					k, payload, err := f.Next()
					if err != nil || k != KindFree || out.Freed(payload) != nil {
						return
					}
				}
			}()
			go func() {
				_, err := out.Write(data)
				if err == nil {
					err = out.Finish()
				}
				out.Abort(err)
			}()
			got, err := io.ReadAll(in)
			if err != nil || !bytes.Equal(got, data) {
				t.Errorf("%d bytes, mailbox %v: %d came, %v", size, mail != nil, len(got), err)
			}
			a.Close()
			b.Close()
		}
	}
}

func TestAnAbortedOutflowStops(t *testing.T) {
	why := errors.New("why")
	o := NewOutflow(brokenWriter{}, KindOut, nil, nil)
	o.Abort(why)
	if _, err := o.Write(make([]byte, 2*ChunkMax)); err != why {
		t.Error(err)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestInboxAndWindow(t *testing.T) {
	i := NewInbox()
	if !i.Put(make([]byte, ExecWindow)) || i.Put([]byte("x")) {
		t.Error("an inbox holds a window, and no more")
	}
	told, got := 0, 0
	i.End()
	i.Pour(func(b []byte) error { got += len(b); return nil }, func(n int) error { told += n; return nil })
	if got != ExecWindow || told != ExecWindow {
		t.Error(got, told)
	}
	w := NewWindow(10)
	if w.Take(7) != 7 || w.Take(7) != 3 {
		t.Error("a window gives what it has")
	}
	w.Give(1000)
	if w.Take(1000) != 10 {
		t.Error("who gives too much gains nothing")
	}
	w.Close()
	if w.Take(1) != 0 {
		t.Error("a closed window gives")
	}
}
