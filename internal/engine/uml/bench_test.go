package uml

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"lodge/internal/base/session"
	"lodge/internal/engine"
	"lodge/internal/launch"
	"lodge/internal/model/guest"
)

// quantiles adds the least and the middle of many times to a benchmark's
// figures, in milliseconds: on a busy machine the mean says little.
func quantiles(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	b.ReportMetric(float64(all[0].Microseconds())/1000, name+"-min-ms")
	b.ReportMetric(float64(all[len(all)/2].Microseconds())/1000, name+"-med-ms")
}

// said runs a program in a guest and returns what it wrote.
func said(b testing.TB, m *Machine, argv ...string) string {
	b.Helper()
	r, w, err := os.Pipe()
	must(b, err)
	defer r.Close()
	s, err := m.Exec(context.Background(), session.Request{Argv: argv, Stdout: w, Stderr: w})
	w.Close()
	must(b, err)
	text, err := io.ReadAll(r)
	must(b, err)
	if code, err := s.Wait(context.Background()); code != 0 || err != nil {
		b.Fatalf("%v: status %d, %v: %s", argv, code, err, text)
	}
	return string(text)
}

// BenchmarkStart times a guest from nothing until its agent answers.
func BenchmarkStart(b *testing.B) {
	r := newRig(b)
	var all []time.Duration
	for b.Loop() {
		b.StopTimer()
		g, p := r.guest(b, guest.Spec{})
		b.StartTimer()
		began := time.Now()
		m := r.boot(b, g, p)
		must(b, m.line.Await(context.Background()))
		all = append(all, time.Since(began))
		b.StopTimer()
		r.end(b, m)
		b.StartTimer()
	}
	quantiles(b, "agent", all)
}

// BenchmarkExec times a program that does nothing, from the call to its end.
func BenchmarkExec(b *testing.B) {
	r := newRig(b)
	g, p := r.guest(b, guest.Spec{})
	m := r.boot(b, g, p)
	defer r.end(b, m)
	said(b, m, "true")
	var all []time.Duration
	for b.Loop() {
		began := time.Now()
		said(b, m, "true")
		all = append(all, time.Since(began))
	}
	quantiles(b, "exec", all)
}

// BenchmarkInside measures within a guest what users feel: system calls, files
// and a TCP stream each way.
func BenchmarkInside(b *testing.B) {
	r := newRig(b)
	g, p := r.guest(b, guest.Spec{Memory: 256 << 20})
	p.NICs = []engine.NIC{r.nic(b, 1)}
	m := r.boot(b, g, p)
	defer r.end(b, m)
	putInside(b, r, m)
	for b.Loop() {
		for line := range strings.Lines(said(b, m, "/root/inside", "calls")) {
			f := strings.Fields(line)
			ns, err := strconv.ParseFloat(f[1], 64)
			must(b, err)
			b.ReportMetric(ns/1000, f[0]+"-us")
		}
		large := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
		began := time.Now()
		put(b, m, "large", large)
		b.ReportMetric(float64(len(large))/1e6/time.Since(began).Seconds(), "in-MB/s")
		began = time.Now()
		must(b, m.Pack(context.Background(), "/root/large", io.Discard))
		b.ReportMetric(float64(len(large))/1e6/time.Since(began).Seconds(), "out-MB/s")
		up, down := streams(b, m, p.NICs[0].Gateway4.String(), 3)
		b.ReportMetric(up, "to-host-Gbit/s")
		b.ReportMetric(down, "to-guest-Gbit/s")
	}
}

// putInside gives a guest the program that measures within it.
func putInside(b *testing.B, r *rig, m *Machine) {
	b.Helper()
	inside := filepath.Join(r.dir, "inside")
	if out, err := exec.Command("gcc", "-O2", "-static", "-o", inside, "../../../test/bench/inside/inside.c").CombinedOutput(); err != nil {
		b.Skipf("%v: %s: scripts/deps.sh build", err, out)
	}
	program, err := os.ReadFile(inside)
	must(b, err)
	put(b, m, "inside", program)
}

// BenchmarkNetwork measures a TCP stream each way over the ways that a jailed
// kernel can have a network card by, one after the other in each round.
func BenchmarkNetwork(b *testing.B) {
	r := newRig(b)
	ways := []struct {
		name, options string // %d is the card's descriptor
		header        bool
	}{
		{"fd", "transport=fd,fd=%d,vec=0", false},
		{"tap", "transport=tap,ifname=fd%d", true},
		{"tap-gro", "transport=tap,ifname=fd%d,gro=1", true},
	}
	var up, down [3]float64
	for b.Loop() {
		for i, w := range ways {
			g, p := r.guest(b, guest.Spec{Memory: 128 << 20})
			p.NICs = []engine.NIC{r.nic(b, 1)}
			j, err := r.engine.jail(g, p)
			must(b, err)
			at := slices.IndexFunc(j.Argv, func(a string) bool { return strings.HasPrefix(a, "vec0:") })
			j.Argv[at] = fmt.Sprintf("vec0:"+w.options+",mac=%s", j.Descriptor(firstCard), p.NICs[0].MAC)
			card := j.Files[firstCard].(launch.Tap)
			card.Header = w.header
			j.Files[firstCard] = card
			prog, err := j.Program()
			must(b, err)
			h, err := r.keeper.Start(context.Background(), g.ID, prog)
			must(b, err)
			c, err := r.engine.Connect(context.Background(), g, p, h)
			must(b, err)
			m := c.(*Machine)
			putInside(b, r, m)
			u, d := streams(b, m, p.NICs[0].Gateway4.String(), 2)
			up[i], down[i] = max(up[i], u), max(down[i], d)
			r.end(b, m)
		}
	}
	for i, w := range ways {
		b.ReportMetric(up[i], w.name+"-to-host-Gbit/s")
		b.ReportMetric(down[i], w.name+"-to-guest-Gbit/s")
	}
}

// put writes a file into the guest's /root.
func put(b testing.TB, m *Machine, name string, content []byte) {
	b.Helper()
	var t bytes.Buffer
	w := tar.NewWriter(&t)
	must(b, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}))
	_, err := w.Write(content)
	must(b, err)
	must(b, w.Close())
	must(b, m.Unpack(context.Background(), "/root", &t))
}

// streams measures one TCP stream each way, so many times, and returns the best
// in Gbit/s.
func streams(b *testing.B, m *Machine, to string, rounds int) (up, down float64) {
	l, err := net.Listen("tcp4", to+":0")
	must(b, err)
	defer l.Close()
	taken := make(chan float64, 1)
	go serve(l, taken)
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	for range rounds {
		said(b, m, "/root/inside", "send", to, port, "2")
		up = max(up, <-taken)
		var n, ns float64
		_, err := fmt.Sscan(said(b, m, "/root/inside", "take", to, port, "2"), &n, &ns)
		must(b, err)
		down = max(down, n*8/ns)
	}
	return up, down
}

// serve sends bytes to who asks for them, and counts those of others.
func serve(l net.Listener, taken chan<- float64) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			if what, err := r.ReadByte(); err == nil && what == 't' {
				for chunk := make([]byte, 256<<10); err == nil; {
					_, err = c.Write(chunk)
				}
				return
			}
			began := time.Now()
			n, _ := io.Copy(io.Discard, r)
			taken <- float64(n) * 8 / float64(time.Since(began).Nanoseconds())
		}()
	}
}
