package doctor

import (
	"cmp"
	"context"
	"fmt"

	"lodge/internal/base/units"
	"lodge/internal/base/zram"
)

// Compression is the memory of idle guests that is kept compressed.
type Compression struct {
	Wanted bool
	Lack   string // why it is not, though it is wanted; empty: it is, or was not needed so far
	Fix    string // the command that cures that
	zram.Usage
}

func compressionCheck(o Options) check {
	return check{"compressed memory", "host", func(context.Context, Options) verdict { return judgeCompression(o.Compression) }}
}

func judgeCompression(c Compression) verdict {
	switch {
	case !c.Wanted:
		return good("none is wanted (lodged --compressed-memory)")
	case c.Lack != "":
		return verdict{state: Warning, found: "none: " + c.Lack, fix: cmp.Or(c.Fix, "lodged --compressed-memory 0   (to do without)"),
			cause: "idle translated virtual machines keep about twice the memory that they need"}
	case c.Device == "":
		return good("none yet; it is made when the first translated virtual machine is idle")
	default:
		return good(fmt.Sprintf("%s of what guests do not use in %s, of %s at most, on %s", units.Bytes(c.Pages), units.Bytes(c.Memory), units.Bytes(c.Size), c.Device))
	}
}
