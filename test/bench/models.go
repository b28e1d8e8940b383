package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"lodge/api"
	"lodge/api/client"
	"lodge/test/sandbox"
)

// buildLimit is how long an image or a kernel may take to build.
const buildLimit = 20 * time.Minute

// bootLimit is how long a guest may take to be ready on a busy machine.
const bootLimit = 5 * time.Minute

// startModels starts lodged with an image of Debian and the kernels called
// kernels, which are downloaded.
func (b *bench) startModels(ctx context.Context, name string, kernels ...string) (*server, error) {
	s, err := b.startKernels(ctx, name, kernels...)
	if err != nil {
		return nil, err
	}
	b.say("building the image debian/12")
	_, err = s.lodgeWithin(ctx, buildLimit, "image", "build", "debian/12")
	return s, err
}

// startKernels starts lodged with the smallest image and kernels.
func (b *bench) startKernels(ctx context.Context, name string, kernels ...string) (*server, error) {
	proxy, closeIt, err := sandbox.OpenProxy()
	if err != nil {
		return nil, err
	}
	b.later(closeIt)
	os.Setenv("http_proxy", proxy) // of what is started from now on
	s, err := b.startServer(ctx, name)
	if err != nil {
		return nil, err
	}
	b.say("building kernels")
	for _, k := range kernels {
		if _, err := s.lodgeWithin(ctx, buildLimit, "kernel", "build", k); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// guest returns what lodged says of one guest. It is asked again and again while
// something is timed, so this is no program that starts each time.
func (s *server) guest(ctx context.Context, name string) (api.Guest, error) {
	c, err := client.New(client.Options{Host: s.host()})
	if err != nil {
		return api.Guest{}, err
	}
	defer c.Close()
	return c.Guest(ctx, name)
}

// ready waits until the guest's init says that it is up.
func (s *server) ready(ctx context.Context, name string) error {
	return until(ctx, name+" is ready", bootLimit, func() error {
		g, err := s.guest(ctx, name)
		if err == nil && !g.Ready {
			err = fmt.Errorf("it is %s, %+v", g.Phase, g.Problem)
		}
		return err
	})
}

// up is ready for a guest that may be unable to come up: one that ended is an
// error at once.
func (s *server) up(ctx context.Context, name string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	return until(ctx, name+" is up", bootLimit, func() error {
		g, err := s.guest(ctx, name)
		switch {
		case err != nil || g.Ready:
			return err
		case g.Phase != "running":
			cancel()
		}
		return fmt.Errorf("it is %s, %+v", g.Phase, g.Problem)
	})
}

// answers waits until a program runs inside the guest.
func (s *server) answers(ctx context.Context, name string) error {
	return until(ctx, name+" answers", bootLimit, func() error {
		_, err := s.lodge(ctx, "exec", name, "--", "true")
		return err
	})
}

// timeLaunch measures the time from the command that launches a guest until that
// command ends, when the guest's program runs, and until wait returns; the guest
// is removed.
func (s *server) timeLaunch(ctx context.Context, wait func(ctx context.Context, name string) error, args ...string) (runs, done time.Duration, err error) {
	const name = "timed"
	begun := time.Now()
	_, err = s.lodge(ctx, append([]string{"launch", args[0], name}, args[1:]...)...)
	runs = time.Since(begun)
	if err == nil {
		err = wait(ctx, name)
	}
	done = time.Since(begun)
	_, e := s.lodge(ctx, "rm", "--force", name)
	return runs, done, errors.Join(err, e)
}

// atLeast adds a promise that a figure is reached.
func (r Row) atLeast(limit float64) Row {
	met := r.N > 0 && r.Median >= limit
	r.Promise, r.Met = fmt.Sprintf(">= %g %s", limit, r.Unit), &met
	return r
}

// calls measures system calls inside a guest.
func (b *bench) calls(ctx context.Context, s *server, name, group, who string) ([]Row, error) {
	if _, err := s.lodge(ctx, "cp", filepath.Join(b.parts, "inside"), name+":/root/inside"); err != nil {
		return nil, err
	}
	text, err := s.lodge(ctx, "exec", name, "--", "/root/inside", "calls")
	if err != nil {
		return nil, err
	}
	var rows []Row
	for line := range strings.Lines(text) {
		var what string
		var least, median float64
		if n, err := fmt.Sscan(line, &what, &least, &median); n != 3 {
			return nil, fmt.Errorf("inside says %q: %w", line, err)
		}
		unit, scale := "us", 1e3
		if what == "fork" {
			what, unit, scale = "fork, exec and wait", "ms", 1e6
		}
		rows = append(rows, Row{Group: group, What: "inside: " + what, Who: who, N: 7, Unit: unit, Min: least / scale, Median: median / scale})
	}
	return rows, nil
}

// copies measures lodge cp of 64 MiB that cannot be compressed, both ways.
func (b *bench) copies(ctx context.Context, s *server, name, group, who string) ([]Row, error) {
	const size = 64 << 20
	file := filepath.Join(b.dir, "bulk")
	content := make([]byte, size)
	rand.Read(content)
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(file)
	var in, out []float64
	for range 3 {
		for _, way := range []struct {
			rates *[]float64
			args  []string
		}{{&in, []string{"cp", file, name + ":/root/bulk"}}, {&out, []string{"cp", name + ":/root/bulk", file + ".back"}}} {
			begun := time.Now()
			if _, err := s.lodge(ctx, way.args...); err != nil {
				return nil, err
			}
			*way.rates = append(*way.rates, size/1e6/time.Since(begun).Seconds())
		}
	}
	defer os.Remove(file + ".back")
	return []Row{rates(group, "lodge cp into the guest", who, "MB/s", in), rates(group, "lodge cp out of the guest", who, "MB/s", out)}, nil
}

// rates makes the row of throughputs. The "least" is of the time, so the best
// rate.
func rates(group, what, who, unit string, all []float64) Row {
	s := Samples(all)
	return Row{Group: group, What: what, Who: who, N: len(all), Unit: unit, Min: s.quantile(1), Median: s.median(), Note: "min is the best"}
}

// traffic measures one TCP stream between the guest and the host, both ways.
func (b *bench) traffic(ctx context.Context, s *server, name, group, who string) ([]Row, error) {
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	taken := make(chan float64, 1)
	go serveTraffic(l, taken)
	gateway, err := s.lodge(ctx, "exec", name, "--", "sh", "-c", "ip -4 route show default | cut -d' ' -f3")
	if err != nil {
		return nil, err
	}
	to, port := strings.TrimSpace(gateway), strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	var up, down []float64
	for range 3 {
		if _, err := s.lodge(ctx, "exec", name, "--", "/root/inside", "send", to, port, "3"); err != nil {
			return nil, err
		}
		up = append(up, <-taken)
		text, err := s.lodge(ctx, "exec", name, "--", "/root/inside", "take", to, port, "3")
		if err != nil {
			return nil, err
		}
		var bytes, ns float64
		if _, err := fmt.Sscan(text, &bytes, &ns); err != nil {
			return nil, err
		}
		down = append(down, bytes*8/ns)
	}
	return []Row{rates(group, "network, guest to host", who, "Gbit/s", up), rates(group, "network, host to guest", who, "Gbit/s", down)}, nil
}

// serveTraffic takes or sends bytes as whoever connects asks, and tells how fast
// it took them.
func serveTraffic(l net.Listener, taken chan<- float64) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			r := bufio.NewReader(c)
			if what, err := r.ReadByte(); err == nil && what == 't' {
				chunk := make([]byte, 256<<10)
				for {
					if _, err := c.Write(chunk); err != nil {
						return
					}
				}
			}
			begun := time.Now()
			n, _ := io.Copy(io.Discard, r)
			taken <- float64(n) * 8 / float64(time.Since(begun).Nanoseconds())
		}()
	}
}

// usage sums up what running guests use.
func (s *server) usage(ctx context.Context) (all []api.Usage, err error) {
	text, err := s.lodge(ctx, "stats", "--no-stream", "-o", "json")
	if err != nil {
		return nil, err
	}
	return all, json.Unmarshal([]byte(text), &all)
}

// proportional is the memory of a process and its descendants, shared pages
// counted in proportion, in MB: what is in memory, and what was swapped out.
func proportional(pid int) (here, swapped float64) {
	for _, p := range append(descendants(pid), pid) {
		rollup := keyed(fmt.Sprintf("/proc/%d/smaps_rollup", p))
		here, swapped = here+rollup["Pss"]/mb, swapped+rollup["SwapPss"]/mb
	}
	return here, swapped
}

func descendants(pid int) (all []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, t := range tasks {
		text, _ := os.ReadFile(t)
		for _, f := range strings.Fields(string(text)) {
			if child, err := strconv.Atoi(f); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}
