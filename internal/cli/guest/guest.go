// Package guest is the commands about guests. Each is at the top of the command
// line and under "lodge guest".
package guest

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/internal/cli"
)

// Commands makes the commands for the top of the command line.
func Commands(f *cli.Factory) []*cobra.Command {
	return append(verbs(f), newRun(f))
}

// NewGroup makes "lodge guest".
func NewGroup(f *cli.Factory) *cobra.Command {
	cmd := cli.Group("guest", "Make and manage guests (all these are also at the top)", "  lodge guest ls\n  lodge guest show web1", "guests")
	cmd.AddCommand(verbs(f)...)
	return cmd
}

func verbs(f *cli.Factory) []*cobra.Command {
	return []*cobra.Command{
		newLaunch(f), newCreate(f),
		newStart(f), newStop(f), newRestart(f), newPause(f), newResume(f), newSave(f),
		newRm(f), newRename(f), newSet(f), newModel(f), newClone(f), newLs(f), newShow(f),
		NewExec(f), newShell(f), newConsole(f), newLogs(f), newCp(f),
		newTop(f), newStats(f),
		newAttach(f), newDetach(f), newExplain(f),
		newScreenshot(f), newSendKey(f), newVNC(f),
		newPassword(f), newAuthorize(f), newTrim(f), newClock(f),
	}
}

// selection is the guests that a command is about: named, all, or by label.
type selection struct {
	names  []string
	all    bool
	labels []string
}

func (s *selection) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.all, "all", false, "all guests")
	cmd.Flags().StringSliceVar(&s.labels, "label", nil, "guests with this label (KEY=VALUE)")
}

// take reads the arguments: names, or --all, or --label.
func (s *selection) take(cmd *cobra.Command, args []string) error {
	s.names = args
	if len(args) > 0 && (s.all || len(s.labels) > 0) {
		return cli.Usagef(cmd, "give names, or --all, or --label, but not several of them")
	}
	if len(args) == 0 && !s.all && len(s.labels) == 0 {
		return cli.Usagef(cmd, "GUEST is missing")
	}
	return nil
}

// resolve asks lodged for the names where none were given.
func (s *selection) resolve(ctx context.Context, f *cli.Factory) ([]string, error) {
	if len(s.names) > 0 {
		return s.names, nil
	}
	c, err := f.Client()
	if err != nil {
		return nil, err
	}
	list, _, err := c.Guests(ctx, s.labels...)
	names := make([]string, len(list))
	for i, g := range list {
		names[i] = g.Name
	}
	return names, err
}

// pairs reads KEY=VALUE arguments; what says how the flag is called. An
// environment variable without "=" is taken from ours, as with docker.
func pairs(cmd *cobra.Command, what string, list []string, lookup func(string) (string, bool)) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	m := make(map[string]string, len(list))
	for _, p := range list {
		k, v, ok := strings.Cut(p, "=")
		if !ok && lookup != nil {
			if v, ok = lookup(k); !ok {
				continue
			}
		}
		if !ok || k == "" {
			return nil, cli.Usagef(cmd, "--%s %q: write it as KEY=VALUE", what, p)
		}
		m[k] = v
	}
	return m, nil
}

// completeGuests completes any number of guests.
func completeGuests(f *cli.Factory) cobra.CompletionFunc { return f.Complete(0, cli.GuestNames) }

// completeGuest completes one guest.
func completeGuest(f *cli.Factory) cobra.CompletionFunc { return f.Complete(1, cli.GuestNames) }

// isKind reports whether err came from lodged with that kind.
func isKind(err error, kind string) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Kind == kind
}
