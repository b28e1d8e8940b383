package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"lodge/internal/base/units"
)

// SizeFlag is a size that may be given or not.
type SizeFlag struct{ Value *uint64 }

// String, Set and Type make it a flag.
func (s *SizeFlag) String() string {
	if s.Value == nil {
		return ""
	}
	return units.Bytes(*s.Value)
}

// Set reads a size.
func (s *SizeFlag) Set(v string) error {
	n, err := units.ParseBytes(v)
	if err != nil {
		return err
	}
	s.Value = &n
	return nil
}

// Type names the kind of value in the help.
func (s *SizeFlag) Type() string { return "SIZE" }

// SecondsFlag is a time in seconds that may be given or not.
type SecondsFlag struct{ Value *int }

// String, Set and Type make it a flag.
func (s *SecondsFlag) String() string {
	if s.Value == nil {
		return ""
	}
	return strconv.Itoa(*s.Value) + "s"
}

// Set reads a time.
func (s *SecondsFlag) Set(v string) error {
	n, err := ParseSeconds(v)
	if err != nil {
		return err
	}
	s.Value = &n
	return nil
}

// Type names the kind of value in the help.
func (s *SecondsFlag) Type() string { return "TIME" }

// OneOf is a word out of a few.
type OneOf struct {
	Value string
	Words []string
}

// String, Set and Type make it a flag.
func (o *OneOf) String() string { return o.Value }

// Set takes one of the words.
func (o *OneOf) Set(v string) error {
	for _, w := range o.Words {
		if v == w {
			o.Value = v
			return nil
		}
	}
	return fmt.Errorf("must be %s", strings.Join(o.Words, ", "))
}

// Type names the kind of value in the help.
func (o *OneOf) Type() string { return strings.Join(o.Words, "|") }

// Var adds the flag and completes it with its words.
func (o *OneOf) Var(cmd *cobra.Command, name, short, usage string) {
	cmd.Flags().VarP(o, name, short, usage)
	// The only errors are a flag that does not exist and one completed twice.
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(o.Words, cobra.ShellCompDirectiveNoFileComp))
}

// Waiting says whether and how long a command waits for the work it asked for.
type Waiting struct {
	no    bool
	limit time.Duration // 0: as long as it takes
	quiet bool          // no progress, because something else is drawn
}

// Flags adds --wait and --no-wait.
func (w *Waiting) Flags(cmd *cobra.Command) {
	flag := cmd.Flags().VarPF(waitValue{w}, "wait", "", "wait for the end, at most this long (default: as long as it takes)")
	flag.NoOptDefVal = "true"
	cmd.Flags().BoolVar(&w.no, "no-wait", false, "print the operation's id and do not wait")
	cmd.MarkFlagsMutuallyExclusive("wait", "no-wait")
}

// waitValue reads --wait, --wait=30s and --wait=false.
type waitValue struct{ w *Waiting }

func (v waitValue) String() string { return "" }
func (v waitValue) Type() string   { return "TIME" }
func (v waitValue) Set(s string) error {
	if b, err := strconv.ParseBool(s); err == nil && s != "1" && s != "0" {
		v.w.no = !b
		return nil
	}
	n, err := ParseSeconds(s)
	if err != nil {
		return err
	}
	if n == 0 {
		return errors.New("to wait for nothing, use --no-wait")
	}
	v.w.limit = time.Duration(n) * time.Second
	return nil
}

var _ pflag.Value = waitValue{}

// Bound gives ctx the limit of the wait.
func (w *Waiting) Bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if w.limit == 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, w.limit)
}

// No reports whether the command does not wait.
func (w *Waiting) No() bool { return w.no }

// LimitFlag adds only a limit of the wait, for a command that is a wait.
func (w *Waiting) LimitFlag(cmd *cobra.Command, name string) {
	cmd.Flags().Var(waitValue{w}, name, "wait at most this long (default: as long as it takes)")
}
