package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"lodge/api"
)

// The exit codes, as "lodge help exit-codes" tells them.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitConflict    = 4
	ExitDenied      = 5
	ExitUnavailable = 6
	ExitRunning     = 7
	ExitInterrupted = 130
)

// UsageError is a command line that cannot be understood.
type UsageError struct {
	Err     error
	Command string // whose help helps
}

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError of cmd.
func Usagef(cmd *cobra.Command, format string, args ...any) error {
	return &UsageError{Err: fmt.Errorf(format, args...), Command: cmd.CommandPath()}
}

// Exit ends the program with a code and without words: all was said, or a
// guest's program said it.
type Exit int

func (e Exit) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// CommandError says that a program could not be begun in a guest. It ends ours
// with what a shell would: 127 for one that is not there, 126 otherwise.
type CommandError struct{ Err *api.Error }

func (e *CommandError) Error() string { return e.Err.Error() }
func (e *CommandError) Unwrap() error { return e.Err }

// Code is the exit code.
func (e *CommandError) Code() int {
	if e.Err.Kind == api.KindNotFound {
		return 127
	}
	return 126
}

// PendingError says that the work goes on though we wait no longer.
type PendingError struct {
	Operation string // its id; empty when it was not told yet
	Err       error  // why we wait no longer: ErrInterrupted or a deadline
}

func (e *PendingError) Error() string {
	if errors.Is(e.Err, ErrInterrupted) {
		return "interrupted; the work goes on"
	}
	return "the wait ran out; the work goes on"
}
func (e *PendingError) Unwrap() error { return e.Err }

func (e *PendingError) hint() string {
	if e.Operation == "" {
		return "see what is under way with: lodge op ls"
	}
	return fmt.Sprintf("follow it with: lodge op wait %s (or give it up: lodge op cancel %s)", e.Operation, e.Operation)
}

// ManyError is what went wrong with some of several things.
type ManyError []error

func (e ManyError) Error() string {
	lines := make([]string, len(e))
	for i, err := range e {
		lines[i] = err.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns them all; the first decides the exit code.
func (e ManyError) Unwrap() []error { return e }

// ExitCode is the code that err ends the program with.
func ExitCode(err error) int {
	if err == nil {
		return ExitOK
	}
	if e, ok := errors.AsType[Exit](err); ok {
		return int(e)
	}
	if e, ok := errors.AsType[*CommandError](err); ok {
		return e.Code()
	}
	if errors.Is(err, ErrInterrupted) {
		return ExitInterrupted
	}
	if _, ok := errors.AsType[*PendingError](err); ok {
		return ExitRunning
	}
	if _, ok := errors.AsType[*UsageError](err); ok {
		return ExitUsage
	}
	if e, ok := errors.AsType[*api.Error](err); ok {
		return kindCode(e.Kind)
	}
	return ExitFailed
}

func kindCode(kind string) int {
	switch kind {
	case api.KindNotFound:
		return ExitNotFound
	case api.KindConflict, api.KindExists:
		return ExitConflict
	case api.KindDenied:
		return ExitDenied
	case api.KindUnavailable:
		return ExitUnavailable
	}
	return ExitFailed
}

// PrintError writes an error and what to try next.
func PrintError(w io.Writer, err error) {
	if many, ok := errors.AsType[ManyError](err); ok {
		for _, e := range many {
			PrintError(w, e)
		}
		return
	}
	if _, ok := errors.AsType[Exit](err); ok || err == nil {
		return
	}
	if _, pending := errors.AsType[*PendingError](err); !pending && errors.Is(err, ErrInterrupted) {
		fmt.Fprintln(w, "lodge: interrupted")
		return
	}
	text, hint := err.Error(), ""
	if e, ok := errors.AsType[*api.Error](err); ok {
		hint = e.Hint
		if e.Kind == api.KindInternal && e.Detail == "" {
			text = "lodged failed; its log says why"
		}
	} else if e, ok := errors.AsType[*PendingError](err); ok {
		hint = e.hint()
	} else if e, ok := errors.AsType[*UsageError](err); ok {
		// cobra puts suggestions on lines of their own
		text = strings.Join(strings.Fields(text), " ")
		hint = fmt.Sprintf("see: %s --help", e.Command)
	}
	fmt.Fprintf(w, "lodge: error: %s\n", Clean(text))
	if hint != "" {
		fmt.Fprintf(w, "lodge: hint: %s\n", Clean(hint))
	}
}

// Args wraps a check of the arguments so that its errors are usage errors.
func Args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return &UsageError{Err: err, Command: cmd.CommandPath()}
		}
		return nil
	}
}

// Some checks that at least the arguments called names are given, of which the
// last may be several, and says what is missing by name.
func Some(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return Usagef(cmd, "%s is missing", names[len(args)])
		}
		return nil
	}
}

// Named checks that exactly the arguments called names are given, and says what
// is missing by name.
func Named(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return Usagef(cmd, "%s is missing", names[len(args)])
		}
		if len(args) > len(names) {
			return Usagef(cmd, "%q is one argument too many", args[len(names)])
		}
		return nil
	}
}

// Group makes a command that only holds others.
func Group(use, short, example string, aliases ...string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Example: example, Aliases: aliases,
		Args: Commands,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// Commands checks the arguments of a command that only holds others: there are
// none. It names the commands that may have been meant.
func Commands(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.SuggestionsMinimumDistance <= 0 {
		cmd.SuggestionsMinimumDistance = 2 // cobra's own, which it sets too late for us
	}
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		return Usagef(cmd, "unknown command %q for %q; did you mean %s?", args[0], cmd.CommandPath(), strings.Join(near, " or "))
	}
	return Usagef(cmd, "unknown command %q for %q", args[0], cmd.CommandPath())
}
