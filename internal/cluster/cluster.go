// Package cluster runs the embedded store server.
package cluster

import (
	"context"
	"log/slog"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lodge/internal/store"
)

type Options struct {
	Dir  string
	Name string
	Log  *slog.Logger
}

type Node struct{}

func Start(ctx context.Context, o Options) (*Node, error)       { panic("soon") }
func (n *Node) Client() *clientv3.Client                        { panic("soon") }
func (n *Node) Store(ctx context.Context) (*store.Store, error) { panic("soon") }
func (n *Node) Close() error                                    { panic("soon") }
