package server

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"sync"
	"time"

	"lodge/internal/base/errs"
	"lodge/internal/store/tables"
)

// remembered is how long a repeated request is known by its key.
const remembered = 10 * time.Minute

// repeats answers a request that is sent again, because its answer was lost,
// with the first one's receipt.
type repeats struct {
	mu    sync.Mutex
	byKey map[string]*firstTime
}

type firstTime struct {
	asked [sha256.Size]byte
	at    time.Time
	done  chan struct{} // closed when op and err are set
	op    tables.OperationRecord
	err   error
}

func newRepeats() *repeats { return &repeats{byKey: map[string]*firstTime{}} }

// once runs do unless the same key did within the time; without a key, always.
// What failed may be tried again under the same key.
func (r *repeats) once(ctx context.Context, key string, body any, do func() (tables.OperationRecord, error)) (tables.OperationRecord, error) {
	if key == "" {
		return do()
	}
	text, err := json.Marshal(body)
	if err != nil {
		return tables.OperationRecord{}, err
	}
	asked := sha256.Sum256(text)
	r.mu.Lock()
	before, ok := r.byKey[key]
	if !ok || time.Since(before.at) > remembered {
		mine := &firstTime{asked: asked, at: time.Now(), done: make(chan struct{})}
		r.sweep()
		r.byKey[key] = mine
		r.mu.Unlock()
		return r.run(key, mine, do)
	}
	r.mu.Unlock()
	if before.asked != asked {
		return tables.OperationRecord{}, &errs.Error{Kind: errs.Invalid, Field: "Idempotency-Key", Msg: "was used for another request", Hint: "make a new key for each request"}
	}
	select {
	case <-before.done:
		return before.op, before.err
	case <-ctx.Done():
		return tables.OperationRecord{}, &errs.Error{Kind: errs.Cancelled, Err: ctx.Err()}
	}
}

func (r *repeats) run(key string, mine *firstTime, do func() (tables.OperationRecord, error)) (tables.OperationRecord, error) {
	mine.err = &errs.Error{Kind: errs.Internal, Msg: "the first request was broken off"} // should do panic
	defer func() {
		close(mine.done)
		if mine.err != nil {
			r.forget(key)
		}
	}()
	mine.op, mine.err = do()
	return mine.op, mine.err
}

func (r *repeats) forget(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byKey, key)
}

// sweep drops what is too old. The lock is held.
func (r *repeats) sweep() {
	for k, f := range r.byKey {
		if time.Since(f.at) > remembered {
			delete(r.byKey, k)
		}
	}
}
