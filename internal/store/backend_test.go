package store

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
)

// backend is one way to keep a store, for the suite that both must pass.
type backend struct {
	name string
	// fresh returns a new and empty place; open opens the store that lies there.
	fresh func() place
}

type place struct {
	open    func() (*Store, error)
	compact func(Rev) error
}

// backends returns memory and a real etcd that ends with the test.
func backends(t testing.TB) []backend {
	return []backend{memoryBackend(), etcdBackend(t)}
}

func memoryBackend() backend {
	return backend{name: "memory", fresh: func() place {
		m := newMemory()
		return place{
			open:    func() (*Store, error) { return newMemoryOn(m), nil },
			compact: func(r Rev) error { m.compact(r); return nil },
		}
	}}
}

func etcdBackend(t testing.TB) backend {
	client := startEtcd(t)
	var n atomic.Int64
	return backend{name: "etcd", fresh: func() place {
		prefix := fmt.Sprintf("/test%d", n.Add(1))
		return place{
			open: func() (*Store, error) {
				return NewEtcd(context.Background(), client, prefix, WithMaxOps(MaxOps))
			},
			compact: func(r Rev) error {
				_, err := client.Compact(context.Background(), int64(r))
				return err
			},
		}
	}}
}

func startEtcd(t testing.TB) *clientv3.Client {
	dir, err := os.MkdirTemp("", "lodge-store")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cfg := embed.NewConfig()
	cfg.Dir, cfg.TickMs, cfg.ElectionMs, cfg.MaxTxnOps = dir, 10, 100, MaxOps
	nowhere := url.URL{Scheme: "http", Host: "127.0.0.1:2380"}
	cfg.AdvertisePeerUrls = []url.URL{nowhere}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ListenPeerUrls, cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nil, nil
	cfg.EnableGRPCGateway = false
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case <-time.After(30 * time.Second):
		t.Fatal("etcd does not become ready")
	}
	client := v3client.New(server.Server)
	t.Cleanup(func() { client.Close() })
	return client
}

// The types of the test's table.
type thing struct {
	Size int            `json:"size"`
	Tags map[string]int `json:"tags,omitempty"`
}

type state struct {
	Phase string   `json:"phase,omitempty"`
	Notes []string `json:"notes,omitempty"`
}

type things = Table[thing, state]

// openIn opens the store of a place with its table; both end with the test.
func openIn(t testing.TB, p place) (*Store, *things) {
	t.Helper()
	s, err := p.open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	table := NewTable[thing, state](s, "thing")
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return s, table
}
