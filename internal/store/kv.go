package store

import (
	"context"
	"errors"
	"iter"
	"math"
)

// kv is the little that a store needs of what keeps its bytes: ordered
// revisions, transactions guarded by revisions, and a watch that can go back.
// Keys are relative to the store: KIND/PART/REST.
type kv interface {
	// load returns every entry and the revision they were read at.
	load(ctx context.Context) ([]entry, Rev, error)
	// commit does all of ops at one revision if every check holds. Otherwise it
	// does nothing and says which checks failed. No two ops have the same key.
	commit(ctx context.Context, checks []check, ops []op) (Rev, []failure, error)
	// watch yields what was committed after a revision, one batch per revision,
	// in order and without end; errCompacted when that is too far back. With
	// prev, each update carries the value it replaced.
	watch(ctx context.Context, after Rev, prev bool) iter.Seq2[batch, error]
	close() error
}

// errCompacted says that history no longer reaches as far back as was asked.
var errCompacted = errors.New("store: revision compacted")

// entry is a key with its value and the revision of its last change.
type entry struct {
	key   string
	value []byte
	rev   Rev
}

// op puts value at key, or deletes key.
type op struct {
	key    string
	value  []byte
	delete bool
}

// check holds when key was last changed at rev exactly; see also absent and
// anyRev.
type check struct {
	key string
	rev Rev
}

const (
	absent Rev = 0             // the key must not exist
	anyRev Rev = math.MaxInt64 // the key must exist, whatever its revision
)

func (c check) holds(found Rev) bool {
	if c.rev == anyRev {
		return found > 0
	}
	return found == c.rev
}

// failure is a check that did not hold; found is the key's revision, 0 when it
// does not exist.
type failure struct {
	check
	found Rev
}

// update is one key's change.
type update struct {
	key     string
	value   []byte
	prev    []byte
	deleted bool
}

// batch is everything one commit changed.
type batch struct {
	rev     Rev
	updates []update
}
