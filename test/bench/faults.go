package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// deaths is how often a monitor is killed.
const deaths = 10

// faults measures how soon it is seen that a guest's monitor was killed, and that
// the restart policy has acted.
func (b *bench) faults(ctx context.Context) error {
	s, err := b.startKernels(ctx, "faults", "linux/debian-12", "um/debian-sid")
	if err != nil {
		return err
	}
	defer s.stop()
	for _, model := range []string{"paravirt", "vm"} {
		if err := b.killMonitor(ctx, s, model); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) killMonitor(ctx context.Context, s *server, model string) error {
	name := "killed-" + model
	b.say("killing the monitor of a guest of model %s", model)
	if _, err := s.lodgeWithin(ctx, buildLimit, "launch", "busybox", name, "--model", model, "--memory", "128MiB", "--restart", "always"); err != nil {
		return err
	}
	var seen, acted Samples
	for range deaths {
		g, err := s.guest(ctx, name)
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := unix.Kill(g.Pid, unix.SIGKILL); err != nil {
			return fmt.Errorf("process %d of %s: %w", g.Pid, name, err)
		}
		first := time.Duration(0)
		err = until(ctx, "it runs again", time.Minute, func() error {
			now, err := s.guest(ctx, name)
			if err != nil {
				return err
			}
			if first == 0 && now.Pid != g.Pid {
				first = time.Since(begun)
			}
			if now.Pid == 0 || now.Pid == g.Pid {
				return fmt.Errorf("it is %s", now.Phase)
			}
			return nil
		})
		if err != nil {
			return err
		}
		seen.add(first)
		acted.add(time.Since(begun))
		// What the user asks for begins the policy's waiting times anew.
		if _, err := s.lodgeWithin(ctx, buildLimit, "restart", "--force", name); err != nil {
			return err
		}
	}
	slowest := func(r Row, took Samples) Row {
		r.Note = fmt.Sprintf("slowest %.0f ms", took.quantile(1))
		return r
	}
	b.report.add(
		slowest(timed("faults", "kill -9 of the monitor to seen", "lodge "+model, seen).atMost(1000), seen),
		slowest(timed("faults", "kill -9 of the monitor to running again", "lodge "+model, acted), acted))
	_, err := s.lodge(ctx, "rm", "-f", name)
	return err
}
