package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// What is listed at once, and how often the peer, which is slower by an order
// of magnitude, takes part in the rounds.
const (
	listed    = 100
	peerEvery = 3
)

// tool is a command line that manages guests.
type tool struct {
	name string
	run  func(ctx context.Context, args ...string) (string, error)

	// The arguments that do something to the guest called name.
	launch, exec, pause, resume, stop, remove func(name string) []string

	figures map[string]*Samples
	failed  map[string]int
	why     map[string]error
}

func newTool(name string, run func(context.Context, ...string) (string, error)) *tool {
	return &tool{name: name, run: run, figures: map[string]*Samples{}, failed: map[string]int{}, why: map[string]error{}}
}

// time runs one command and notes how long it took.
func (t *tool) time(ctx context.Context, what string, counts bool, args ...string) error {
	begun := time.Now()
	_, err := t.run(ctx, args...)
	took := time.Since(begun)
	if t.figures[what] == nil {
		t.figures[what] = &Samples{}
	}
	switch {
	case err != nil:
		t.failed[what]++
		t.why[what] = err
	case counts:
		t.figures[what].add(took)
	}
	return err
}

// step is one verb of a guest's life.
type step struct {
	what  string
	args  func(t *tool) func(name string) []string
	limit float64 // what is promised, in milliseconds; 0: nothing
}

func steps() []step {
	return []step{
		{"launch", func(t *tool) func(string) []string { return t.launch }, 40},
		{"exec true", func(t *tool) func(string) []string { return t.exec }, 10},
		{"pause", func(t *tool) func(string) []string { return t.pause }, 10},
		{"resume", func(t *tool) func(string) []string { return t.resume }, 0},
		{"stop --force", func(t *tool) func(string) []string { return t.stop }, 40},
		{"rm (stopped)", func(t *tool) func(string) []string { return t.remove }, 20},
	}
}

// commands measures the command line, from its start to its end, against a
// running daemon.
func (b *bench) commands(ctx context.Context) error {
	s, err := b.startServer(ctx, "commands")
	if err != nil {
		return err
	}
	defer s.stop()
	tools := []*tool{s.tool()}
	peer, err := b.startLXD(ctx, s)
	if err != nil {
		b.report.skip("lxd: %v", err)
	} else {
		defer peer.stop()
		tools = append(tools, peer.tool())
	}
	if err := b.lives(ctx, tools); err != nil {
		return err
	}
	if err := b.lists(ctx, s, peer, tools); err != nil {
		return err
	}
	b.reportCommands(tools)
	return nil
}

// lives walks guests through their lives, by turns.
func (b *bench) lives(ctx context.Context, tools []*tool) error {
	for i := range b.rounds + 1 {
		for _, t := range tools {
			if t != tools[0] && i%peerEvery != 0 {
				continue
			}
			name := fmt.Sprintf("%s-%d", b.tag, i)
			if err := t.time(ctx, "--version", i > 0, "--version"); err != nil {
				return err
			}
			for _, step := range steps() {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				err := t.time(ctx, step.what, i > 0, step.args(t)(name)...)
				if err != nil && t == tools[0] {
					return err
				}
			}
		}
	}
	return nil
}

// lists measures how long a hundred guests take to list.
func (b *bench) lists(ctx context.Context, s *server, peer *lxd, tools []*tool) error {
	if _, err := s.lodge(ctx, "launch", "busybox", "l", "--count", fmt.Sprint(listed)); err != nil {
		return err
	}
	if peer != nil {
		for i := range listed {
			if _, err := peer.lxc(ctx, "init", peerImage, fmt.Sprintf("%s-l%d", b.tag, i)); err != nil {
				b.report.skip("lxc list of %d: %v", listed, err)
				tools, peer = tools[:1], nil
				break
			}
		}
	}
	const what = "ls of 100"
	for i := range b.rounds {
		if err := tools[0].time(ctx, what, true, "ls"); err != nil {
			return err
		}
		if peer != nil && i%peerEvery == 0 {
			tools[1].time(ctx, what, true, "list")
			tools[1].time(ctx, what+", no table", true, "query", "/1.0/instances?recursion=1")
		}
	}
	return nil
}

func (b *bench) reportCommands(tools []*tool) {
	own := tools[0]
	row := func(t *tool, what string) Row {
		r := Row{Group: "commands", What: what, Who: t.name, Unit: "ms"}
		if s := t.figures[what]; s != nil {
			r = timed("commands", what, t.name, *s)
		}
		r.Failed = t.failed[what]
		if r.Failed > 0 {
			b.say("%s %s: %v", t.name, what, t.why[what])
		}
		return r
	}
	all := append(steps(), step{what: "ls of 100", limit: 15}, step{what: "--version", limit: 8})
	for _, step := range all {
		r := row(own, step.what)
		if len(tools) > 1 {
			r = r.beside(row(tools[1], step.what))
		}
		if step.limit > 0 {
			r = r.atMost(step.limit)
		}
		b.report.add(r)
		for _, t := range tools[1:] {
			b.report.add(row(t, step.what))
		}
	}
	for _, t := range tools[1:] {
		b.report.add(row(t, "ls of 100, no table"))
	}
}

// server is one lodged with everything of its own.
type server struct {
	b       *bench
	dir     string
	flags   []string
	service *service
	stopped bool
}

// startServer starts lodged and builds the smallest image.
func (b *bench) startServer(ctx context.Context, name string) (*server, error) {
	s := &server{b: b, dir: filepath.Join(b.dir, name)}
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return nil, err
	}
	s.flags = []string{
		"--data-dir", filepath.Join(s.dir, "data"), "--run-dir", filepath.Join(s.dir, "run"), "--https", "none", "--raise-limits=false",
		"--pool-size", "8GiB", "--cgroup", b.tag + "-" + name, "--prefix", "lb", "--host", "bench", "--log-level", "warn",
	}
	b.later(s.stop)
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	_, err := s.lodge(ctx, "image", "build", "busybox")
	return s, err
}

// start starts lodged, with more flags than those it always has.
func (s *server) start(ctx context.Context, more ...string) (err error) {
	argv := append(append([]string{filepath.Join(s.b.bin, "lodged")}, s.flags...), more...)
	if s.service, err = serve(filepath.Join(s.dir, "log"), nil, argv...); err != nil {
		return err
	}
	return until(ctx, "lodged answers", time.Minute, func() error {
		if err := s.service.failed(); err != nil {
			return err
		}
		_, err := s.lodge(ctx, "version")
		return err
	})
}

// anew ends lodged and starts it with other flags.
func (s *server) anew(ctx context.Context, more ...string) error {
	s.service.end()
	return s.start(ctx, more...)
}

// lodge runs the command line.
func (s *server) lodge(ctx context.Context, args ...string) (string, error) {
	return s.lodgeWithin(ctx, commandLimit, args...)
}

// lodgeWithin runs the command line for something that takes long.
func (s *server) lodgeWithin(ctx context.Context, limit time.Duration, args ...string) (string, error) {
	return within(ctx, limit, []string{"LODGE_HOST=" + s.host()}, append([]string{filepath.Join(s.b.bin, "lodge")}, args...)...)
}

// host is where lodged listens, as clients are told.
func (s *server) host() string { return "unix://" + filepath.Join(s.dir, "run/lodged.sock") }

// stop takes everything of the server down. It may be called again.
func (s *server) stop() {
	if s.stopped {
		return
	}
	s.stopped = true
	if _, err := command(context.Background(), nil, append([]string{filepath.Join(s.b.bin, "lodged"), "down"}, s.flags...)...); err != nil {
		s.b.say("%v", err)
	}
	s.service.end()
}

func (s *server) tool() *tool {
	t := newTool("lodge", s.lodge)
	verb := func(args ...string) func(string) []string {
		return func(name string) []string { return append(append([]string{}, args...), name) }
	}
	t.launch = verb("launch", "busybox")
	t.exec = func(name string) []string { return []string{"exec", name, "--", "true"} }
	t.pause, t.resume, t.stop, t.remove = verb("pause"), verb("resume"), verb("stop", "--force"), verb("rm")
	return t
}

// pid returns that of the server's keeper.
func (s *server) keeper() (int, error) {
	pids := processes(func(argv []string) bool {
		return strings.HasSuffix(argv[0], "/lodge-keeper") && strings.Contains(strings.Join(argv, " "), s.dir)
	})
	if len(pids) != 1 {
		return 0, errors.New("there is not one keeper")
	}
	return pids[0], nil
}
