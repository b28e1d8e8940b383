// Package cluster runs the server that holds the records: etcd, inside the
// daemon's own process. A host on its own is a cluster of one.
//
// The server listens nowhere. Everything goes through Client, which calls it
// directly, so it needs no address, no certificate and not even a loopback
// interface.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/store"
)

// Options says where and as whom the server runs.
type Options struct {
	Dir  string // of the server alone; made if it does not exist
	Name string // the host's name within the cluster
	Log  *slog.Logger
}

// Node is the running server of this host.
type Node struct {
	server *embed.Etcd
	client *clientv3.Client
	dir    string
	lock   *os.File
}

const (
	// A member alone never waits for another one's heartbeat, so its clock
	// ticks fast to be ready fast: 0.2 s after start at 1 % of a core, where the
	// default of 100 ms takes up to a second.
	tickMs     = 25
	electionMs = 10 * tickMs

	// etcd lays out each segment of its log ahead; 64 MB by default, far more
	// than our records weigh.
	walSegment = 8 << 20

	// The log is folded into a snapshot after so many commits, which bounds
	// what a restart reads again.
	snapshotCount = 5000
	// ... and so many commits stay in memory for members that lag behind.
	// There are none.
	catchUp = 100

	// Events can be read again for so many revisions.
	keepRevisions = "10000"

	quota      = 512 << 20 // bytes of records, old revisions included
	maxRequest = 8 << 20   // bytes of one transaction: store.MaxOps of 2 KiB each
	defragOver = 16        // MiB that a start may win by rewriting the file

	// reserve is the free space below which nothing is added to the records.
	// Without it etcd would find the disk full half-way and stop the process;
	// two log segments and a step of the record file's growth fit into it.
	reserve = 32 << 20

	// prefix is where the records lie; the rest of the key space is free.
	prefix = "/lodge"
)

// Start starts the server, making an empty one in a new directory, and returns
// once it answers; it may not be called twice at the same time. It is an error
// of kind Busy if another process serves from the directory, of kind NoSpace if
// the disk is full, and of kind Internal, saying what to do, if the files are
// damaged.
func Start(ctx context.Context, o Options) (*Node, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, startError(o.Dir, "the directory cannot be made", err)
	}
	if err := os.Chmod(o.Dir, 0o700); err != nil {
		return nil, startError(o.Dir, "the directory cannot be kept private", err)
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	n := &Node{dir: o.Dir, lock: lock}
	if err := n.start(ctx, o); err != nil {
		lock.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) start(ctx context.Context, o Options) error {
	if err := n.Space(); err != nil {
		return err
	}
	if err := checkFiles(o.Dir); err != nil {
		return err
	}
	// A package variable of etcd's is the only way to say this.
	if wal.SegmentSizeBytes != walSegment {
		wal.SegmentSizeBytes = walSegment
	}
	server, err := startEtcd(o)
	if err != nil {
		return err
	}
	select {
	case <-server.Server.ReadyNotify():
	case err = <-server.Err():
	case <-server.Server.StopNotify():
		err = errors.New("stopped while starting")
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		server.Close()
		return startError(o.Dir, "the store's server does not become ready", err)
	}
	n.server, n.client = server, v3client.New(server.Server)
	return nil
}

// startEtcd turns the panics with which etcd answers damaged files into errors.
func startEtcd(o Options) (server *embed.Etcd, err error) {
	var last lastWords
	defer func() {
		if p := recover(); p != nil {
			if said := last.get(); said != "" {
				p = said // it says more than a panic while cleaning up
			} else if _, ok := p.(runtime.Error); ok {
				p = fmt.Sprintf("the log does not hold what a server starts from (%v)", p)
			}
			server, err = nil, damaged(o.Dir, fmt.Errorf("%v", p))
		}
	}()
	server, err = embed.StartEtcd(config(o, &last))
	if errors.Is(err, walpb.ErrCRCMismatch) {
		return nil, damaged(o.Dir, err)
	}
	if err != nil {
		return nil, startError(o.Dir, "the store's server does not start", err)
	}
	return server, nil
}

func config(o Options, last *lastWords) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.Name = o.Dir, o.Name
	cfg.TickMs, cfg.ElectionMs = tickMs, electionMs
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = snapshotCount, catchUp
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, keepRevisions
	cfg.QuotaBackendBytes = quota
	cfg.BootstrapDefragThresholdMegabytes = defragOver
	cfg.MaxTxnOps, cfg.MaxRequestBytes = store.MaxOps, maxRequest
	cfg.EnableGRPCGateway = false

	// A member must say where its peers would find it. There are none, so this
	// is only a name; nothing listens there.
	nowhere := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	cfg.AdvertisePeerUrls = []url.URL{nowhere}
	cfg.InitialCluster = o.Name + "=" + nowhere.String()
	cfg.AdvertiseClientUrls = nil
	cfg.ListenPeerUrls, cfg.ListenClientUrls = nil, nil

	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(bridge(o.Log, last))
	return cfg
}

// Client returns the in-process connection to the server; it ends with the
// node.
func (n *Node) Client() *clientv3.Client { return n.client }

// Store opens the records that the server holds. Close the store before the
// node.
func (n *Node) Store(ctx context.Context) (*store.Store, error) {
	return store.NewEtcd(ctx, n.client, prefix, store.WithMaxOps(store.MaxOps), store.WithGuard(n.Space))
}

// LastStore is Store for whoever takes the host down: what is kept free for
// such times may be used.
func (n *Node) LastStore(ctx context.Context) (*store.Store, error) {
	return store.NewEtcd(ctx, n.client, prefix, store.WithMaxOps(store.MaxOps))
}

// Space is an error of kind NoSpace when the disk under the records is so full
// that nothing may be added.
func (n *Node) Space() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(n.dir, &fs); err != nil {
		return startError(n.dir, "the disk does not answer", err)
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < reserve {
		return &errs.Error{
			Op: "cluster", Kind: errs.NoSpace, Ref: n.dir,
			Msg:  fmt.Sprintf("only %d MiB are free on the disk that holds the records", free>>20),
			Hint: fmt.Sprintf("make at least %d MiB of room there; then everything goes on by itself", reserve>>20),
		}
	}
	return nil
}

// Close stops the server. What was committed is on disk already.
func (n *Node) Close() error {
	err := n.client.Close()
	if errors.Is(err, context.Canceled) {
		err = nil // how a client without a connection reports being closed
	}
	n.server.Close()
	return errors.Join(err, n.lock.Close())
}

// lockDir makes sure that no other process serves from dir, until the file that
// it returns is closed or the process ends.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, startError(dir, "its lock cannot be made", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		owner, _ := os.ReadFile(path)
		return nil, &errs.Error{
			Op: "cluster.start", Kind: errs.Busy, Ref: dir,
			Msg:  "process " + strings.TrimSpace(string(owner)) + " holds these records already",
			Hint: "stop the other lodged, or give this one a data directory of its own", Err: err,
		}
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	}
	if err != nil {
		f.Close()
		return nil, startError(dir, "its lock cannot be written", err)
	}
	return f, nil
}

// checkFiles finds a damaged record file before etcd does, which would end the
// process over it.
func checkFiles(dir string) (err error) {
	path := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	defer func() {
		if p := recover(); p != nil { // bbolt trusts what its pages say
			err = damaged(path, fmt.Errorf("%v", p))
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true})
	if err != nil {
		return damaged(path, err)
	}
	return db.Close()
}

func damaged(path string, err error) error {
	return &errs.Error{
		Op: "cluster.start", Kind: errs.Internal, Ref: path, Msg: "the records are damaged",
		Hint: "put the directory aside and restore it from a backup; guests that run go on running", Err: err,
	}
}

func startError(dir, msg string, err error) error {
	e := &errs.Error{Op: "cluster.start", Kind: errs.Internal, Ref: dir, Msg: msg, Err: err}
	switch {
	case errors.Is(err, unix.ENOSPC):
		e.Kind, e.Hint = errs.NoSpace, "make room on the disk"
	case errors.Is(err, context.Canceled):
		e.Kind = errs.Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		e.Kind = errs.Unavailable
	}
	return e
}
