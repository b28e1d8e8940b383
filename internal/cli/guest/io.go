package guest

import (
	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/internal/cli"
)

// ioFlags are the limits of a guest's disk traffic. They are one setting: those
// that are not given are none.
type ioFlags struct {
	read, write         cli.SizeFlag
	readIOPS, writeIOPS uint64
}

func (o *ioFlags) flags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.Var(&o.read, "io-read", "bytes read from its disk a second at most; the --io flags are one setting, those not given are no limit")
	fl.Var(&o.write, "io-write", "bytes written to its disk a second at most")
	fl.Uint64Var(&o.readIOPS, "io-read-ops", 0, "reads from its disk a second at most")
	fl.Uint64Var(&o.writeIOPS, "io-write-ops", 0, "writes to its disk a second at most")
}

// limits returns what was given, or nil when nothing was.
func (o *ioFlags) limits(cmd *cobra.Command) *api.IO {
	fl := cmd.Flags()
	if !fl.Changed("io-read") && !fl.Changed("io-write") && !fl.Changed("io-read-ops") && !fl.Changed("io-write-ops") {
		return nil
	}
	limits := &api.IO{ReadIOPS: o.readIOPS, WriteIOPS: o.writeIOPS}
	if o.read.Value != nil {
		limits.ReadBPS = *o.read.Value
	}
	if o.write.Value != nil {
		limits.WriteBPS = *o.write.Value
	}
	return limits
}
