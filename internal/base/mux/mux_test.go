package mux

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// wire makes a connection a carrier.
type wire struct {
	net.Conn
	mu sync.Mutex
}

func (w *wire) Send(head, body []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, err := w.Write(head); err != nil || len(body) == 0 {
		return err
	}
	_, err := w.Write(body)
	return err
}

const window = 256 << 10

var options = Options{Window: window, Most: 8}

func pair(t testing.TB) (a, b net.Conn) {
	a, b = net.Pipe()
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func library() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive, c.LogOutput, c.MaxStreamWindowSize = false, io.Discard, window
	return c
}

// echo sends back what comes, and closes when that ends.
func echo(st io.ReadWriteCloser) {
	io.Copy(st, st)
	st.Close()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// converse sends text and checks that it comes back and ends.
func converse(t *testing.T, st io.ReadWriteCloser, text []byte) {
	t.Helper()
	go func() {
		st.Write(text)
		st.Close()
	}()
	back, err := io.ReadAll(st)
	if err != nil || !bytes.Equal(back, text) {
		t.Errorf("%d of %d bytes came back: %v", len(back), len(text), err)
	}
}

// several holds conversations of all sizes beside each other.
func several(t *testing.T, open func() (io.ReadWriteCloser, error)) {
	var all sync.WaitGroup
	for _, n := range []int{1, 5, 4096, window, 5 * window} {
		all.Go(func() {
			st, err := open()
			if err != nil {
				t.Error(err)
				return
			}
			converse(t, st, bytes.Repeat([]byte("x"), n))
		})
	}
	all.Wait()
}

// TestEachOther: what one writes the other reads, and so do those who have the
// library that set the rules.
func TestEachOther(t *testing.T) {
	t.Run("ours", func(t *testing.T) {
		a, b := pair(t)
		go Serve(&wire{Conn: b}, options, func(st *Stream) { echo(st) })
		s := Client(&wire{Conn: a}, options)
		several(t, func() (io.ReadWriteCloser, error) { return s.Open() })
		must(t, s.Ping(time.Minute))
		if n := left(s); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
	t.Run("their server", func(t *testing.T) {
		a, b := pair(t)
		server, err := yamux.Server(b, library())
		must(t, err)
		go func() {
			for {
				st, err := server.AcceptStream()
				if err != nil {
					return
				}
				go echo(st)
			}
		}()
		s := Client(&wire{Conn: a}, options)
		several(t, func() (io.ReadWriteCloser, error) { return s.Open() })
		must(t, s.Ping(time.Minute))
	})
	t.Run("their client", func(t *testing.T) {
		a, b := pair(t)
		go Serve(&wire{Conn: b}, options, func(st *Stream) { echo(st) })
		client, err := yamux.Client(a, library())
		must(t, err)
		several(t, func() (io.ReadWriteCloser, error) { return client.OpenStream() })
		_, err = client.Ping()
		must(t, err)
	})
}

func left(s *Session) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.streams)
}

// TestOneFrame: what opens a stream goes out with what is first said on it.
func TestOneFrame(t *testing.T) {
	a, b := pair(t)
	s := Client(&wire{Conn: a}, options)
	go func() {
		st, _ := s.Open()
		st.Write([]byte("hello"))
	}()
	got := make([]byte, headSize+5)
	_, err := io.ReadFull(b, got)
	must(t, err)
	if want := append(head(typeData, flagSYN, 1, 5), "hello"...); !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

// TestUnheard: a stream that nobody heard of ends without a word.
func TestUnheard(t *testing.T) {
	a, b := pair(t)
	s := Client(&wire{Conn: a}, options)
	st, err := s.Open()
	must(t, err)
	must(t, st.Close())
	if _, err := st.Write([]byte("x")); !errors.Is(err, ErrClosed) {
		t.Errorf("writing after closing: %v", err)
	}
	if _, err := st.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("reading: %v", err)
	}
	go s.Ping(time.Minute)
	got := make([]byte, headSize)
	_, err = io.ReadFull(b, got)
	must(t, err)
	if got[1] != typePing || left(s) != 0 {
		t.Errorf("%x was said, %d streams are left", got, left(s))
	}
}

// TestDeadlines: nobody waits longer than he wants to, for whatever.
func TestDeadlines(t *testing.T) {
	a, b := pair(t)
	go io.Copy(io.Discard, b)
	s := Client(&wire{Conn: a}, options)
	st, err := s.Open()
	must(t, err)
	st.SetReadDeadline(time.Now().Add(-time.Second))
	if _, err := st.Read(make([]byte, 1)); !errors.Is(err, ErrTimeout) {
		t.Errorf("reading: %v", err)
	}
	st.SetReadDeadline(time.Time{})
	read := make(chan error)
	go func() {
		_, err := st.Read(make([]byte, 1))
		read <- err
	}()
	st.SetDeadline(time.Now().Add(10 * time.Millisecond))
	if err := <-read; !errors.Is(err, ErrTimeout) {
		t.Errorf("reading as time runs out: %v", err)
	}
	if n, err := st.Write(make([]byte, 2*window)); !errors.Is(err, ErrTimeout) || n != window {
		t.Errorf("writing more than the window: %d, %v", n, err)
	}
	if err := s.Ping(time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("ping: %v", err)
	}
}

// TestEnd: a session's end ends all that goes on in it.
func TestEnd(t *testing.T) {
	a, b := pair(t)
	go io.Copy(io.Discard, b)
	s := Client(&wire{Conn: a}, options)
	st, err := s.Open()
	must(t, err)
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := st.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("reading: %v", err)
		}
	})
	all.Go(func() {
		if _, err := st.Write(make([]byte, 2*window)); err == nil {
			t.Error("writing succeeded")
		}
	})
	all.Go(func() {
		if err := s.Ping(time.Hour); err == nil {
			t.Error("ping succeeded")
		}
	})
	b.Close()
	all.Wait()
	<-s.Ended()
	if _, err := s.Open(); !errors.Is(err, ErrEnded) {
		t.Errorf("opening: %v", err)
	}
}

// TestRefused: no more streams than are wanted, and those that are, go on.
func TestRefused(t *testing.T) {
	a, b := pair(t)
	go Serve(&wire{Conn: b}, options, func(st *Stream) { io.Copy(st, st) })
	const more = 4
	go func() {
		for i := range uint32(options.Most + more) {
			a.Write(head(typeWindow, flagSYN, 2*i+1, 0))
		}
		a.Write(append(head(typeData, 0, 1, 2), "hi"...))
	}()
	var want []byte
	for i := range uint32(more) {
		want = append(want, head(typeWindow, flagRST, 2*(uint32(options.Most)+i)+1, 0)...)
	}
	want = append(append(want, head(typeData, flagACK, 1, 2)...), "hi"...)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%x, want %x (%v)", got, want, err)
	}
}

// TestRules: who breaks them is hung up on.
func TestRules(t *testing.T) {
	open := head(typeWindow, flagSYN, 1, 0)
	for name, b := range map[string][]byte{
		"another version":         {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
		"an unknown kind":         head(9, 0, 1, 0),
		"a stream twice":          append(bytes.Clone(open), open...),
		"a stream of no number":   head(typeWindow, flagSYN, 0, 0),
		"more than the window":    head(typeData, flagSYN, 1, window+1),
		"windows without end":     append(append(bytes.Clone(open), head(typeWindow, 0, 1, 1<<31)...), head(typeWindow, 0, 1, 1<<31)...),
		"farewell":                head(typeGoAway, 0, 0, 0),
		"a window, then too much": append(append(bytes.Clone(open), head(typeData, 0, 1, 1)...), append([]byte("x"), head(typeData, 0, 1, window)...)...),
	} {
		t.Run(name, func(t *testing.T) {
			a, c := pair(t)
			ended := make(chan struct{})
			go func() {
				Serve(&wire{Conn: c}, options, func(*Stream) {})
				close(ended)
			}()
			a.Write(b)
			<-ended
		})
	}
}

// FuzzServe: whatever comes, the server neither fails nor holds more than it may.
func FuzzServe(f *testing.F) {
	f.Add(append(head(typeData, flagSYN, 1, 3), "abc"...))
	f.Add(append(head(typeWindow, flagSYN|flagFIN, 1, 0), head(typePing, flagSYN, 0, 7)...))
	f.Add(append(head(typeData, flagRST|flagACK, 5, 2), "ab"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := pair(t)
		go io.Copy(io.Discard, a)
		go func() {
			a.Write(b)
			a.Close()
		}()
		Serve(&wire{Conn: c}, options, func(st *Stream) {
			io.Copy(st, io.LimitReader(st, 64))
			st.Close()
		})
	})
}

// FuzzClient: likewise for who asks.
func FuzzClient(f *testing.F) {
	f.Add(append(head(typeData, flagACK, 1, 3), "abc"...))
	f.Add(head(typeWindow, flagFIN, 1, 0))
	f.Add(binary.BigEndian.AppendUint64(nil, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, c := pair(t)
		s := Client(&wire{Conn: c}, options)
		st, err := s.Open()
		must(t, err)
		go io.Copy(io.Discard, a)
		go func() {
			a.Write(b)
			a.Close()
		}()
		st.Write([]byte("x"))
		if got, _ := io.ReadAll(st); len(got) > len(b) {
			t.Errorf("%d bytes were made of %d", len(got), len(b))
		}
		st.Close()
		<-s.Ended()
	})
}
