// Package daemon is the only place that wires: it lists the drivers, opens what
// is shared, and starts and stops everything in order.
package daemon

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"lodge/internal/base/errs"
	"lodge/internal/base/kvmprobe"
	"lodge/internal/engine"
	"lodge/internal/fabric"
)

// Options is what an administrator can choose when starting lodged.
type Options struct {
	DataDir    string  // records, images, volumes, logs: everything that must last
	RunDir     string  // sockets and mounts: everything that ends with the host
	Host       string  // this host's name; empty is its host name
	HTTPS      string  // address of the HTTPS listener; empty is none
	Group      string  // name of Lodge's control group
	Prefix     string  // what names of network devices and nftables tables begin with
	Pool       string  // driver of the default pool when it is first made; empty lets Lodge choose
	Size       uint64  // bytes of the default pool's file when it is first made; 0 lets the driver choose
	Limits     bool    // raise the host's limits that many guests need
	Templates  *uint64 // bytes of memory for templates, from which guests start warm; nil: a share of the host's
	Standby    *uint64 // bytes of memory for guests that stand ready before anybody asks for them; nil: a share of the host's
	Compressed *uint64 // bytes of guests' memory that may be kept compressed while they are idle; nil: a share of the host's
	Log        *slog.Logger

	Engines engine.Set // beside Lodge's own, after them
}

// Defaults returns the options of a server that is Lodge's alone.
func Defaults() Options {
	return Options{
		DataDir: "/var/lib/lodge", RunDir: "/run/lodge", HTTPS: "127.0.0.1:8443",
		Group: "lodge", Prefix: fabric.Prefix, Limits: true, Log: slog.Default(),
	}
}

// check completes the options and says what is wrong with them.
func (o *Options) check() error {
	for _, d := range []struct {
		flag string
		dir  *string
	}{{"data-dir", &o.DataDir}, {"run-dir", &o.RunDir}} {
		if *d.dir == "" || strings.ContainsAny(*d.dir, ",:\n") {
			return errs.Bad(d.flag, "\""+*d.dir+"\" is not a directory's name", "use a path without commas, colons and line breaks")
		}
		abs, err := filepath.Abs(*d.dir)
		if err != nil {
			return err
		}
		*d.dir = abs
	}
	if o.Host == "" {
		name, err := os.Hostname()
		if err != nil {
			return err
		}
		o.Host = strings.ToLower(name)
	}
	if os.Geteuid() != 0 {
		return &errs.Error{Kind: errs.Denied, Msg: "lodged needs to be root", Hint: "sudo lodged"}
	}
	return nil
}

// Socket is where the daemon listens for the host's own administrator.
func (o Options) Socket() string { return filepath.Join(o.RunDir, "lodged.sock") }

func (o Options) programs() string { return filepath.Join(o.RunDir, "bin") }
func (o Options) kvmProbe() []string {
	return []string{filepath.Join(o.programs(), keeperProgram), kvmprobe.Argument}
}
func (o Options) keeperDir() string { return filepath.Join(o.RunDir, "keeper") }
func (o Options) storeDir() string  { return filepath.Join(o.DataDir, "store") }
func (o Options) imageDir() string  { return filepath.Join(o.DataDir, "images") }
func (o Options) kernelDir() string { return filepath.Join(o.DataDir, "kernels") }
func (o Options) spoolDir() string  { return filepath.Join(o.DataDir, "spool") }
func (o Options) poolDir() string   { return filepath.Join(o.DataDir, "pools") }
func (o Options) guestDir() string  { return filepath.Join(o.DataDir, "guests") }
func (o Options) tlsDir() string    { return filepath.Join(o.DataDir, "tls") }
func (o Options) pidFile() string   { return filepath.Join(o.RunDir, "lodged.pid") }
func (o Options) tokenFile() string { return filepath.Join(o.DataDir, "token") }
