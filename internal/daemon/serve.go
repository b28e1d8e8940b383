package daemon

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"

	"lodge/api"
	"lodge/internal/admission"
	"lodge/internal/base/errs"
	"lodge/internal/base/fsx"
	"lodge/internal/base/version"
	"lodge/internal/control/guests"
	"lodge/internal/doctor"
	"lodge/internal/fabric"
	"lodge/internal/fabric/bridge"
	"lodge/internal/images/disk"
	"lodge/internal/model/image"
	"lodge/internal/server"
)

// newServer wires the API to everything it shows and changes.
func (d *daemon) newServer(ctx context.Context) (*server.Server, error) {
	token, err := d.token()
	if err != nil {
		return nil, err
	}
	facts, err := hostFacts()
	if err != nil {
		return nil, err
	}
	door := admission.New(admission.Options{
		Store: d.store, Tables: d.tables, Host: admission.Host{CPUs: facts.cpus, Memory: facts.memory, Architecture: runtime.GOARCH},
		Engine: d.drivers.engineFacts, PoolDrivers: d.drivers.poolDrivers, NetworkDrivers: d.drivers.networkDrivers,
		CheckSource: d.checkSource, CheckKernel: d.checkKernel, CheckDisc: checkDisc,
		PortFree: bridge.PortFree, HostPrefixes: d.hostPrefixes, TakeStandby: d.guests.TakeStandby,
	})
	return server.New(ctx, server.Options{
		Door: door, Store: d.store, Tables: d.tables, Live: live{d.guests}, Unsaid: d.guests.Unsaid, Screens: d.guests, Care: d.guests, Explain: d.guests.Explain, Probe: d.probeEngines, Images: content{d}, Space: d.space, Foresee: d.foresee,
		Doctor: d.examine, Host: d.host, Graph: d.runner.Graph, Progress: d.progress,
		HostName: d.opt.Host, Version: version.Version, Token: token, Log: d.log,
	}), nil
}

// token returns what HTTPS asks for, made once.
func (d *daemon) token() (string, error) {
	text, err := os.ReadFile(d.opt.tokenFile())
	if err == nil {
		return strings.TrimSpace(string(text)), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	var b [32]byte
	rand.Read(b[:])
	token := "lodge_" + hex.EncodeToString(b[:])
	return token, fsx.WriteFile(d.opt.tokenFile(), []byte(token+"\n"), 0o600)
}

func (d *daemon) checkSource(s image.Spec) error {
	source, ok := d.drivers.sources[s.Source]
	if !ok {
		return errs.Bad("source", "there is no source "+s.Source, "lodge image build --help lists what can be built")
	}
	return source.Check(s)
}

// checkDisc says whether guests can be given a file of the host as a disc.
func checkDisc(path string) error {
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return &errs.Error{Kind: errs.NotFound, Msg: path + " is not on this host"}
	case err == nil && (!info.Mode().IsRegular() || info.Size() == 0):
		return &errs.Error{Kind: errs.Invalid, Msg: path + " is no file with something in it"}
	}
	f, err := os.Open(path)
	if err != nil {
		return &errs.Error{Kind: errs.Invalid, Msg: path + " cannot be read", Err: err}
	}
	return f.Close()
}

func (d *daemon) space(ctx context.Context, pool string) (server.Space, error) {
	p, err := d.pools.Get(pool)
	if err != nil {
		return server.Space{}, err
	}
	s, err := p.Space(ctx)
	return server.Space{Total: s.Total, Used: s.Used, Free: s.Free}, err
}

// live gives the server what only exists while a guest runs.
type live struct{ *guests.Reconciler }

// Console attaches to a guest's terminal.
func (l live) Console(ctx context.Context, id string) (server.Console, error) {
	return l.Reconciler.Console(ctx, id)
}

// content gives the server the content of images.
type content struct{ *daemon }

// Spool checks and keeps an upload, with the source that its beginning is for.
func (c content) Spool(ctx context.Context, r io.Reader, limit uint64) (source, id string, err error) {
	in := bufio.NewReaderSize(r, disk.HeadSize)
	head, _ := in.Peek(disk.HeadSize) // what broke off is said again when it is read
	if disk.Likely(head) {
		id, err = c.drivers.disks.Receive(ctx, in, limit)
		return c.drivers.disks.Name(), id, err
	}
	id, err = c.drivers.trees.Receive(ctx, in, limit)
	return c.drivers.trees.Name(), id, err
}

// Discard drops an upload that nothing became of.
func (c content) Discard(id string) error { return c.drivers.spool.Discard(id) }

// Export writes an image's content.
func (c content) Export(ctx context.Context, name, format string, w io.Writer) error {
	rec, err := c.tables.Images.Get(name)
	if err != nil {
		return err
	}
	if rec.Status.Digest == "" {
		return &errs.Error{Kind: errs.Conflict, Ref: "image/" + name, Msg: "is not ready yet", Hint: "lodge image show " + name}
	}
	return c.images.Export(ctx, rec.Status.Digest, format, w)
}

// examine runs the doctor.
func (d *daemon) examine(ctx context.Context, fix bool) ([]api.Check, error) {
	var out []api.Check
	o := doctor.Options{DataDir: d.opt.DataDir, Fix: fix, KVMProbe: d.opt.kvmProbe(), Kernels: d.kernelsThere(ctx), Compression: d.compression.seen()}
	d.networks.All(func(_ string, f fabric.Fabric) { o.Bridges = append(o.Bridges, f.Device()) })
	for _, c := range doctor.Run(ctx, o) {
		out = append(out, api.Check{
			Name: c.Name, Group: c.Group, State: string(c.State), Found: c.Found, Cause: c.Cause, Fix: c.Fix, Fixed: c.Fixed, Before: c.Before,
		})
	}
	return out, nil
}

// tryKVM says whether guests run on this host's KVM at the processor's own
// speed, and what was seen.
func (o Options) tryKVM(ctx context.Context) (bool, string) { return doctor.KVM(ctx, o.kvmProbe()) }

// RestoreLimits gives the host back the limits it had before Lodge raised them.
func RestoreLimits(ctx context.Context, o Options) error { return doctor.Restore(ctx, o.DataDir) }

// OpenAPI writes the description of the API.
func OpenAPI(out io.Writer) error {
	text, err := server.OpenAPI()
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return err
}

// listen opens the socket of the host's administrator and, if wanted, HTTPS. A
// socket that was left behind by a daemon that died is replaced: the lock on
// the data directory says that it is dead.
func (d *daemon) listen() ([]net.Listener, error) {
	if err := os.Remove(d.opt.Socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	local, err := net.Listen("unix", d.opt.Socket())
	if err != nil {
		return nil, err
	}
	if err := shareSocket(d.opt.Socket()); err != nil {
		return nil, errors.Join(err, local.Close())
	}
	if d.opt.HTTPS == "" {
		return []net.Listener{local}, nil
	}
	remote, err := d.listenHTTPS()
	if err != nil {
		return nil, errors.Join(err, local.Close())
	}
	return []net.Listener{local, remote}, nil
}

// shareSocket lets root and the members of the group lodge, if the host has
// one, connect.
func shareSocket(path string) error {
	if err := os.Chmod(path, 0o660); err != nil {
		return err
	}
	g, err := user.LookupGroup("lodge")
	if err != nil {
		return nil
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	return os.Chown(path, 0, gid)
}

// listenHTTPS opens the listener of those who are not on this host, or not
// root, with a certificate of Lodge's own making.
func (d *daemon) listenHTTPS() (net.Listener, error) {
	host, _, err := net.SplitHostPort(d.opt.HTTPS)
	if err != nil {
		return nil, errs.Bad("https", err.Error(), "write it as 127.0.0.1:8443")
	}
	config, err := server.LoadOrMakeTLS(d.opt.tlsDir(), []string{host, "localhost", d.opt.Host})
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", d.opt.HTTPS)
	if err != nil {
		return nil, &errs.Error{Kind: errs.Conflict, Field: "https", Msg: "cannot listen on " + d.opt.HTTPS, Hint: "choose another address: lodged --https 127.0.0.1:9443, or none", Err: err}
	}
	return tls.NewListener(l, config), nil
}
