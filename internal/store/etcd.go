package store

import (
	"context"
	"errors"
	"iter"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"lodge/internal/base/errs"
)

// etcd is a kv under a prefix of an etcd key space.
type etcd struct {
	client *clientv3.Client
	prefix string // ends in '/'
}

func (e *etcd) load(ctx context.Context) ([]entry, Rev, error) {
	got, err := e.client.Get(ctx, e.prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, etcdError("store.load", err)
	}
	all := make([]entry, 0, len(got.Kvs))
	for _, p := range got.Kvs {
		all = append(all, entry{key: e.relative(p), value: p.Value, rev: Rev(p.ModRevision)})
	}
	return all, Rev(got.Header.Revision), nil
}

func (e *etcd) relative(p *mvccpb.KeyValue) string {
	return strings.TrimPrefix(string(p.Key), e.prefix)
}

func (e *etcd) commit(ctx context.Context, checks []check, ops []op) (Rev, []failure, error) {
	var (
		when  []clientv3.Cmp
		then  []clientv3.Op
		other []clientv3.Op
	)
	for _, c := range checks {
		key := e.prefix + c.key
		other = append(other, clientv3.OpGet(key, clientv3.WithKeysOnly()))
		if c.rev == anyRev {
			when = append(when, clientv3.Compare(clientv3.ModRevision(key), ">", 0))
		} else {
			when = append(when, clientv3.Compare(clientv3.ModRevision(key), "=", int64(c.rev)))
		}
	}
	for _, o := range ops {
		if o.delete {
			then = append(then, clientv3.OpDelete(e.prefix+o.key))
		} else {
			then = append(then, clientv3.OpPut(e.prefix+o.key, string(o.value)))
		}
	}
	got, err := e.client.Txn(ctx).If(when...).Then(then...).Else(other...).Commit()
	if err != nil {
		return 0, nil, etcdError("store.commit", err)
	}
	if got.Succeeded {
		return Rev(got.Header.Revision), nil, nil
	}
	var failed []failure
	for i, c := range checks {
		var found Rev
		if kvs := got.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			found = Rev(kvs[0].ModRevision)
		}
		if !c.holds(found) {
			failed = append(failed, failure{check: c, found: found})
		}
	}
	return 0, failed, nil
}

func (e *etcd) watch(ctx context.Context, after Rev, prev bool) iter.Seq2[batch, error] {
	return func(yield func(batch, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // ends the watch on the server's side
		opts := []clientv3.OpOption{clientv3.WithPrefix(), clientv3.WithRev(int64(after) + 1)}
		if prev {
			opts = append(opts, clientv3.WithPrevKV())
		}
		for got := range e.client.Watch(ctx, e.prefix, opts...) {
			if ctx.Err() != nil {
				return
			}
			if got.CompactRevision != 0 {
				yield(batch{}, errCompacted)
				return
			}
			if err := got.Err(); err != nil {
				yield(batch{}, etcdError("store.watch", err))
				return
			}
			for _, b := range e.batches(got.Events) {
				if !yield(b, nil) {
					return
				}
			}
		}
		if ctx.Err() == nil {
			yield(batch{}, &errs.Error{Op: "store.watch", Kind: errs.Unavailable, Msg: "the store's server has stopped"})
		}
	}
}

// batches groups events by revision. etcd never spreads a revision over two
// responses unless fragments are asked for.
func (e *etcd) batches(events []*clientv3.Event) []batch {
	var all []batch
	for _, ev := range events {
		rev := Rev(ev.Kv.ModRevision)
		if n := len(all); n == 0 || all[n-1].rev != rev {
			all = append(all, batch{rev: rev})
		}
		u := update{key: e.relative(ev.Kv), value: ev.Kv.Value, deleted: ev.Type == clientv3.EventTypeDelete}
		if ev.PrevKv != nil {
			u.prev = ev.PrevKv.Value
		}
		last := &all[len(all)-1]
		last.updates = append(last.updates, u)
	}
	return all
}

// close leaves the client to whoever made it.
func (e *etcd) close() error { return nil }

// etcdError gives an error of the server the kind that says what can be done.
func etcdError(op string, err error) error {
	e := &errs.Error{Op: op, Kind: errs.Unavailable, Msg: "the store does not answer", Err: err}
	switch {
	case errors.Is(err, context.Canceled):
		e.Kind, e.Msg = errs.Cancelled, "given up"
	case errors.Is(err, rpctypes.ErrNoSpace):
		e.Kind, e.Msg = errs.NoSpace, "the store is full"
	case errors.Is(err, rpctypes.ErrRequestTooLarge):
		e.Kind, e.Msg = errs.Invalid, "this change is too large for one transaction"
	}
	return e
}
