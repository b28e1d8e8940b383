package engine

import (
	"context"
	"errors"
	"strings"
	"testing"

	"lodge/internal/base/errs"
	"lodge/internal/model/guest"
)

// fixed is an engine that only says what it is.
type fixed struct {
	Engine
	info Info
	err  error
}

func (f fixed) Info(context.Context) (Info, error) { return f.info, f.err }

func hall() Set {
	return Set{
		fixed{info: Info{Name: "own", Model: guest.OS}},
		fixed{info: Info{Name: "fast", Model: guest.VM, Missing: "the CPU cannot", Hint: "another CPU"}},
		fixed{info: Info{Name: "slow", Model: guest.VM}},
		fixed{info: Info{Name: "port", Model: guest.Paravirt}, err: errors.New("it broke")},
		fixed{info: Info{Name: "other", Model: guest.Paravirt, Missing: "not installed", Hint: "apt-get install other"}},
	}
}

func TestPick(t *testing.T) {
	for _, c := range []struct {
		model       guest.Model
		named, want string
		kind        errs.Kind
		field, says string
		hint        string
	}{
		{model: guest.OS, want: "own"},
		{model: guest.VM, want: "slow"},
		{model: guest.VM, named: "slow", want: "slow"},
		{model: guest.VM, named: "fast", kind: errs.Unsupported, field: "engine", says: "fast cannot run here: the CPU cannot", hint: "another CPU"},
		{model: guest.VM, named: "own", kind: errs.Invalid, field: "engine", says: "own runs guests of model os, not vm", hint: "--model os"},
		{model: guest.VM, named: "none", kind: errs.Invalid, field: "engine", says: `no engine "none"`, hint: "lodge engine ls"},
		{model: guest.Paravirt, kind: errs.Unsupported, field: "model", says: "paravirt cannot run here: it broke"},
		{model: guest.Paravirt, named: "other", kind: errs.Unsupported, field: "engine", says: "not installed", hint: "apt-get install other"},
		{model: "pod", kind: errs.Unsupported, field: "model", says: "no engine for guests of model pod"},
	} {
		e, i, err := hall().Pick(t.Context(), c.model, c.named)
		if c.want != "" {
			if err != nil || i.Name != c.want || e == nil {
				t.Errorf("%s %q: %s, %v; want %s", c.model, c.named, i.Name, err, c.want)
			}
			continue
		}
		ours, ok := errors.AsType[*errs.Error](err)
		if !ok || ours.Kind != c.kind || ours.Field != c.field || !strings.Contains(ours.Msg, c.says) || !strings.Contains(ours.Hint, c.hint) {
			t.Errorf("%s %q: %#v", c.model, c.named, err)
		}
	}
}

func TestLimitsLeaveRoomForTheMonitor(t *testing.T) {
	o := Overhead{Memory: 10, CPUs: 1}
	if l := o.Limits(guest.Spec{Memory: 100, CPUs: 2}, ""); l.Memory != 110 || l.CPUs != 3 {
		t.Errorf("memory %d, processors %v; want 110 and 3", l.Memory, l.CPUs)
	}
	if l := o.Limits(guest.Spec{CPUs: 1.5}, ""); l.CPUs != 1.5 {
		t.Errorf("a guest with a share of a processor got %v", l.CPUs)
	}
	if l := (Overhead{Memory: 10, Swap: true}).Limits(guest.Spec{Memory: 100, Swap: 5}, ""); l.Swap != 110 {
		t.Errorf("of a guest that may be swapped out whole, %d may; want 110", l.Swap)
	}
	if l := o.Limits(guest.Spec{Memory: 100, Swap: 5}, ""); l.Swap != 5 {
		t.Errorf("of swap space %d, not 5", l.Swap)
	}
	if l := o.Limits(guest.Spec{}, ""); l.Memory != 0 || l.CPUs != 0 {
		t.Errorf("a guest without limits got some: %d, %v", l.Memory, l.CPUs)
	}
}
