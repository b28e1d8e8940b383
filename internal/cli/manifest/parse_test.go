package manifest

import (
	"errors"
	"strings"
	"testing"

	"lodge/api"
)

func TestParse(t *testing.T) {
	list, err := Parse("f", strings.NewReader(`
kind: guest
name: 0123
image: busybox
memory: 1GiB
io: {read_bps: 10MiB}
cpus: 1.5
command: [echo, 1, yes]
env: {A: true, B: 2026-01-01}
power: on
base: &x
`))
	if err == nil {
		t.Fatalf("an unknown field went through: %v", list)
	}
	list, err = Parse("f", strings.NewReader(`
kind: guest
name: 0123
memory: 1GiB
io: {read_bps: 10MiB}
cpus: 1.5
command: [echo, 1, yes]
env: {A: true, B: 2026-01-01}
power: on
`))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"command":["echo","1","yes"],"cpus":1.5,"env":{"A":"true","B":"2026-01-01"},"io":{"read_bps":10485760},"memory_bytes":1073741824,"name":"0123","power":"on"}`
	if got := string(list[0].Spec); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// FuzzParse: whatever is in the file, it is manifests or a clear error.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"kind: guest\nname: a", "kind: [", "- a", "kind: guest\nautostart: {delay: 2m}\n---\nkind: pool", "a: &a [*a]", "kind: guest\nio: &x {read_bps: 1}\nenv: *x", "kind: guest\n? [a]\n: b", "kind: guest\nio: {<<: {read_bps: 1}}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := Parse("f", strings.NewReader(s))
		if err == nil {
			for _, m := range list {
				if kindType(m.Kind) == nil {
					t.Errorf("kind %q", m.Kind)
				}
			}
			return
		}
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind != api.KindInvalid || !strings.HasPrefix(e.Ref, "f, document ") {
			t.Errorf("error %#v", err)
		}
	})
}
