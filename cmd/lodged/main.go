// Lodged is the daemon of Lodge: it divides this server into guests, and
// serves the API that the command line and the web page use.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/units"
	"lodge/internal/base/version"
	"lodge/internal/daemon"
)

const usage = `lodged divides this server into isolated virtual servers.

Usage:
  lodged [run] [flags]   serve until told to end; guests run on when it does
  lodged down [flags]    stop all guests and the daemon; data stays
  lodged restore-limits  give the host back the limits it had before Lodge
  lodged openapi         print the description of the API (OpenAPI 3.1)
  lodged version         print the version

Examples:
  lodged
  lodged run --data-dir /srv/lodge --pool dir
  lodged down

Flags:
`

func main() {
	// SIGHUP is left alone: a terminal that closes is no reason to end.
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, out, talk io.Writer) int {
	verb := "run"
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		verb, args = args[0], args[1:]
	}
	o, err := options(args, talk)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	switch verb {
	case "run":
		err = daemon.Run(ctx, o)
	case "down":
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		err = daemon.Down(ctx, o, out)
	case "restore-limits":
		err = daemon.RestoreLimits(ctx, o)
	case "openapi":
		err = daemon.OpenAPI(out)
	case "version":
		fmt.Fprintln(out, "lodged", version.Version)
	case "help":
		flags(&daemon.Options{}, talk).Usage()
	default:
		fmt.Fprintf(talk, "lodged: error: unknown command %q\nlodged: hint: lodged --help\n", verb)
		return 2
	}
	if err != nil {
		fmt.Fprintln(talk, "lodged: error:", err)
		var e *errs.Error
		if errors.As(err, &e) && e.Hint != "" {
			fmt.Fprintln(talk, "lodged: hint:", e.Hint)
		}
		return 1
	}
	return 0
}

func flags(o *daemon.Options, talk io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("lodged", flag.ContinueOnError)
	f.SetOutput(talk)
	d := daemon.Defaults()
	f.StringVar(&o.DataDir, "data-dir", d.DataDir, "what must last: records, images, volumes, logs")
	f.StringVar(&o.RunDir, "run-dir", d.RunDir, "what ends with the host: sockets and mounts")
	f.StringVar(&o.Host, "host", "", "this host's name (default: its host name)")
	f.StringVar(&o.HTTPS, "https", d.HTTPS, "address of the HTTPS listener; none: only the socket")
	f.StringVar(&o.Group, "cgroup", d.Group, "name of Lodge's control group")
	f.StringVar(&o.Prefix, "prefix", d.Prefix, "what names of network devices and nftables tables begin with, at most 5 letters")
	f.StringVar(&o.Pool, "pool", "", "driver of the default pool when it is first made (default: the best this host can do)")
	f.Func("pool-size", "size of the default pool's file when it is first made, such as 20GiB", func(s string) (err error) {
		o.Size, err = units.ParseBytes(s)
		return err
	})
	f.Func("template-memory", "memory for templates, from which virtual machines start in a moment; 0: none (default: an eighth of the host's)", func(s string) error {
		n, err := units.ParseBytes(s)
		o.Templates = &n
		return err
	})
	f.Func("standby-memory", "memory for virtual machines that stand ready before anybody asks for them, one of each kind that was launched lately; 0: none (default: an eighth of the host's)", func(s string) error {
		n, err := units.ParseBytes(s)
		o.Standby = &n
		return err
	})
	f.Func("compressed-memory", "memory of idle virtual machines that may be kept compressed, in swap space that is made for it; 0: none (default: a quarter of the host's)", func(s string) error {
		n, err := units.ParseBytes(s)
		o.Compressed = &n
		return err
	})
	f.BoolVar(&o.Limits, "raise-limits", d.Limits, "raise the host's limits that many guests need; old values are remembered")
	f.Usage = func() { fmt.Fprint(talk, usage); f.PrintDefaults() }
	return f
}

func options(args []string, talk io.Writer) (daemon.Options, error) {
	o := daemon.Defaults()
	f := flags(&o, talk)
	level := f.String("log-level", "info", "debug, info, warn or error")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		fmt.Fprintf(talk, "lodged: error: unknown argument %q\nlodged: hint: lodged --help\n", f.Arg(0))
		return o, errors.New("unknown argument")
	}
	var l slog.Level
	if err := l.UnmarshalText([]byte(*level)); err != nil {
		fmt.Fprintf(talk, "lodged: error: log-level: %v\n", err)
		return o, err
	}
	if o.HTTPS == "none" {
		o.HTTPS = ""
	}
	o.Log = slog.New(slog.NewTextHandler(talk, &slog.HandlerOptions{Level: l}))
	return o, nil
}
