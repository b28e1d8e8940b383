package kernel

import (
	"errors"
	"strings"
	"testing"

	"lodge/internal/base/errs"
)

func TestChoose(t *testing.T) {
	all := []string{"linux/debian-12", "linux/debian-13", "linux/mine", "um/debian-12", "um/debian-sid"}
	for _, c := range []struct {
		name          string
		there         []string
		sort          Sort
		os, rel, want string
		chosen        string // or
		build         string // the kernel that is missing
	}{
		{"the image's own", all, Machine, "debian", "13", "", "linux/debian-13", ""},
		{"another distribution", all, Machine, "busybox", "1.35", "", "linux/debian-12", ""},
		{"another release that is there", []string{"linux/debian-13"}, Machine, "debian", "12", "", "linux/debian-13", ""},
		{"somebody's own", []string{"linux/mine", "um/debian-12"}, Machine, "debian", "12", "", "linux/mine", ""},
		{"by name", all, Machine, "debian", "13", "linux/debian-12", "linux/debian-12", ""},
		{"by name, missing", all, Machine, "debian", "13", "linux/debian-14", "", "linux/debian-14"},
		{"none", []string{"um/debian-sid"}, Machine, "debian", "13", "", "", "linux/debian-13"},
		{"none, of no release", nil, Machine, "alpine", "3", "", "", "linux/debian-12"},
		{"the newest package", all, Program, "debian", "12", "", "um/debian-sid", ""},
		{"the old package", []string{"um/debian-12"}, Program, "debian", "12", "", "um/debian-12", ""},
		{"compiled", append(all, "um/lodge"), Program, "debian", "12", "", "um/lodge", ""},
		{"no program", nil, Program, "debian", "12", "", "", "um/debian-sid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Choose(c.there, c.sort, c.os, c.rel, c.want)
			if got != c.chosen {
				t.Errorf("got %q (%v), want %q", got, err, c.chosen)
			}
			if c.build == "" {
				return
			}
			e, ok := errors.AsType[*errs.Error](err)
			if !ok || e.Kind != errs.NotFound || e.Ref != "kernel/"+c.build || !strings.HasSuffix(e.Hint, " "+c.build) {
				t.Errorf("%+v", err)
			}
		})
	}
	if _, err := Choose(all, Machine, "debian", "12", "um/debian-12"); !errs.Is(err, errs.Invalid) {
		t.Errorf("a kernel of the wrong sort: %v", err)
	}
	if _, err := Choose(all, "xen", "debian", "12", ""); !errs.Is(err, errs.Unsupported) {
		t.Errorf("an unknown sort: %v", err)
	}
}
