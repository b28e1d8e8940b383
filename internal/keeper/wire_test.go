package keeper

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"lodge/internal/base/errs"
)

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		`{"id":1,"op":"hello"}`, `{"op":"start","name":"a","program":{"argv":["/bin/true"]}}`, `{"op":"start","name":"a"}`,
		`{"op":"have","record":{"name":"a","pid":3,"ticks":9,"exit":{"code":1}}}`, `{"op":"exit"}`, `{"op":"forget","name":"../x"}`,
		`{"op":"reply","failure":{"kind":"nope","msg":"x"}}`, `[]`, ``, `{"op":7}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		m, err := Decode(packet)
		if err != nil {
			return
		}
		// What a handler relies on without looking.
		switch m.Op {
		case OpStart:
			if len(m.Program.Argv) == 0 || CheckName(m.Name) != nil {
				t.Fatalf("%+v", m)
			}
		case OpHave, OpExit, OpAdopt:
			if m.Record.Pid <= 0 || CheckName(m.Record.Name) != nil {
				t.Fatalf("%+v", m)
			}
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := Decode(b); err == nil && !reflect.DeepEqual(m.Failure, again.Failure) && m.Op == again.Op {
			t.Fatalf("%+v became %+v", m, again)
		}
	})
}

func TestFailureCrosses(t *testing.T) {
	if NewFailure(nil).Err() != nil {
		t.Error("nothing became an error")
	}
	in := &errs.Error{Kind: errs.Conflict, Ref: "a", Msg: "runs", Hint: "wait", Err: errors.New("why")}
	out := NewFailure(in).Err()
	e, ok := errors.AsType[*errs.Error](out)
	if !ok || e.Kind != errs.Conflict || e.Ref != "a" || e.Msg != "runs: why" || e.Hint != "wait" {
		t.Errorf("%v became %v", in, out)
	}
	if out := NewFailure(errors.New("plain")).Err(); !errs.Is(out, errs.Internal) {
		t.Errorf("plain error became %v", out)
	}
}

// TestNameUsedAgain: what the keeper keeps under a name may be another program
// than the one we knew, if we were away.
func TestNameUsedAgain(t *testing.T) {
	c := &Client{held: map[string]*held{}, exits: map[*subscription]struct{}{}}
	c.have(Record{State: State{Name: "a", Pid: 10}, Ticks: 1}, nil, true)
	first := c.held["a"]
	c.have(Record{State: State{Name: "a", Pid: 10}, Ticks: 2}, nil, true)
	select {
	case <-first.done:
		if !first.rec.Exit.Unknown {
			t.Errorf("the first one ended with %+v", first.rec.Exit)
		}
	default:
		t.Error("the first one is thought to run")
	}
	c.have(Record{State: State{Name: "a", Pid: 10, Exit: &Exit{Code: 2, At: time.Now()}}, Ticks: 2}, nil, true)
	c.have(Record{State: State{Name: "a", Pid: 10, Exit: &Exit{Code: 2, At: time.Now()}}, Ticks: 2}, nil, true)
	if c.held["a"].rec.Exit.Code != 2 {
		t.Errorf("%+v", c.held["a"].rec)
	}
}
