// Package store keeps records in typed tables.
package store

import (
	"context"
	"iter"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"lodge/internal/model"
)

type Rev int64

type Record[S, T any] struct {
	model.Meta
	Spec   S
	Status T
	Rev    Rev
}

type Change[S, T any] struct {
	Record[S, T]
	Deleted bool
}

type Event struct {
	Rev     Rev
	At      time.Time
	Kind    model.Kind
	ID      string
	Name    string
	Part    string
	Deleted bool
}

type Store struct{}

func NewMemory() *Store { panic("soon") }
func NewEtcd(ctx context.Context, client *clientv3.Client, prefix string) (*Store, error) {
	panic("soon")
}
func (s *Store) Close() error                                                 { panic("soon") }
func (s *Store) Err() error                                                   { panic("soon") }
func (s *Store) Begin() *Tx                                                   { panic("soon") }
func (s *Store) Rev() Rev                                                     { panic("soon") }
func (s *Store) Events(ctx context.Context, from Rev) iter.Seq2[Event, error] { panic("soon") }

type Tx struct{}

func (t *Tx) Commit(ctx context.Context) (Rev, error) { panic("soon") }

type Table[S, T any] struct{}

type MetaOption func(*model.Meta)

func WithLabels(labels map[string]string) MetaOption { panic("soon") }
func WithID(id string) MetaOption                    { panic("soon") }

func NewTable[S, T any](s *Store, kind model.Kind) *Table[S, T] { panic("soon") }
func (t *Table[S, T]) Get(name string) (Record[S, T], error)    { panic("soon") }
func (t *Table[S, T]) ByID(id string) (Record[S, T], error)     { panic("soon") }
func (t *Table[S, T]) List() []Record[S, T]                     { panic("soon") }
func (t *Table[S, T]) Len() int                                 { panic("soon") }
func (t *Table[S, T]) Create(ctx context.Context, name string, spec S, opts ...MetaOption) (Record[S, T], error) {
	panic("soon")
}
func (t *Table[S, T]) Update(ctx context.Context, name string, change func(*Record[S, T]) error) (Record[S, T], error) {
	panic("soon")
}
func (t *Table[S, T]) SetStatus(ctx context.Context, id string, change func(*T) error) (Record[S, T], error) {
	panic("soon")
}
func (t *Table[S, T]) Delete(ctx context.Context, id string) error { panic("soon") }
func (t *Table[S, T]) CreateIn(tx *Tx, name string, spec S, opts ...MetaOption) Record[S, T] {
	panic("soon")
}
func (t *Table[S, T]) UpdateIn(tx *Tx, r Record[S, T]) Record[S, T] { panic("soon") }
func (t *Table[S, T]) SetStatusIn(tx *Tx, r Record[S, T])           { panic("soon") }
func (t *Table[S, T]) DeleteIn(tx *Tx, r Record[S, T])              { panic("soon") }
func (t *Table[S, T]) Watch(ctx context.Context, from Rev) iter.Seq2[Change[S, T], error] {
	panic("soon")
}
