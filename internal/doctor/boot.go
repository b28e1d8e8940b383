package doctor

import (
	"context"
	"strings"
)

// Kernels is what guests of a model have to boot on this host.
type Kernels struct {
	Model string   // "vm"
	There []string // names and versions
	Lack  string   // why none can be made, if none is there; empty: one is made when it is needed
	Fix   string   // the command that cures that
}

// bootChecks judges the kernels that whoever runs the doctor knows of.
func bootChecks(o Options) []check {
	var out []check
	for _, k := range o.Kernels {
		out = append(out, check{"kernels for model " + k.Model, "guests", func(context.Context, Options) verdict { return judgeKernels(k) }})
	}
	return out
}

func judgeKernels(k Kernels) verdict {
	switch {
	case len(k.There) > 0:
		return good(strings.Join(k.There, ", "))
	case k.Lack == "":
		return good("none yet; one is made for the first guest that needs it")
	}
	return verdict{
		state: Warning, found: "none, and none can be made: " + k.Lack, fix: k.Fix,
		cause: "guests of model " + k.Model + " cannot start; those of model os are not concerned",
	}
}
