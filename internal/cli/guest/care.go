package guest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/api/client"
	"lodge/internal/base/units"
	"lodge/internal/cli"
)

func newPassword(f *cli.Factory) *cobra.Command {
	user := "root"
	cmd := &cobra.Command{
		Use: "password GUEST", Short: "Give a user of a guest a new password",
		Long: `Give a user of a running guest a new password. It is asked for, or read from the
standard input (its first line); on the command line others could see it.`,
		Example:           "  lodge password web1\n  lodge password web1 --user ann <secret.txt",
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			if _, err := c.Guest(cmd.Context(), args[0]); err != nil {
				return err // before a person types in vain
			}
			password, err := f.Streams.NewPassword(cmd.Context(), fmt.Sprintf("New password for %s of %s", user, args[0]))
			if err != nil {
				return fmt.Errorf("the password: %w", err)
			}
			return c.SetPassword(cmd.Context(), args[0], api.Password{User: user, Password: password})
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", user, "whose password")
	return cmd
}

func newAuthorize(f *cli.Factory) *cobra.Command {
	user := "root"
	cmd := &cobra.Command{
		Use: "authorize GUEST FILE…", Short: "Let SSH keys log in to a guest",
		Long: `Let whoever has the private half of one of the public keys in the files log in as
a user of a running guest: they are added to the user's authorized_keys. "-" reads
the standard input. The guest needs a server of SSH to log in to.`,
		Example: "  lodge authorize web1 ~/.ssh/id_ed25519.pub\n  ssh-add -L | lodge authorize web1 - --user ann",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return cli.Usagef(cmd, "%s is missing", []string{"GUEST", "FILE"}[len(args)])
			}
			return nil
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return completeGuest(f)(cmd, args, word)
			}
			return []string{"pub"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var keys []string
			for _, file := range args[1:] {
				more, err := readKeys(f, file)
				if err != nil {
					return err
				}
				keys = append(keys, more...)
			}
			c, err := f.Client()
			if err != nil {
				return err
			}
			return c.Authorize(cmd.Context(), args[0], api.AuthorizedKeys{User: user, Keys: keys})
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", user, "who logs in with them")
	return cmd
}

// readKeys reads the lines of a file that are no remarks.
func readKeys(f *cli.Factory, file string) ([]string, error) {
	var in io.Reader = f.Streams.In
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer opened.Close()
		in = opened
	}
	var keys []string
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if l := strings.TrimSpace(lines.Text()); l != "" && !strings.HasPrefix(l, "#") {
			keys = append(keys, l)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return keys, nil
}

func newTrim(f *cli.Factory) *cobra.Command {
	return careCommand(f, "trim GUEST…", "Give back to the pool what guests' disks hold and the guests do not use",
		`Give back to the pool the space of files that were removed in running guests of
model vm and paravirt, whose disks keep it otherwise. Guests of model os have
nothing to trim: what they remove is free at once.`,
		"  lodge trim vm1\n  lodge trim vm1 vm2", func(ctx context.Context, c *client.Client, guest string) error {
			n, err := c.Trim(ctx, guest)
			if err == nil {
				fmt.Fprintf(f.Streams.Out, "%s: %s are not used\n", guest, units.Bytes(n))
			}
			return err
		})
}

func newClock(f *cli.Factory) *cobra.Command {
	return careCommand(f, "clock GUEST…", "Set guests' clocks to their host's",
		`Set the clock of running guests of model vm and paravirt to that of their host, as
after a long pause. Guests of model os show the host's clock anyway.`,
		"  lodge clock vm1", func(ctx context.Context, c *client.Client, guest string) error { return c.SetClock(ctx, guest) })
}

// careCommand makes a verb that asks something of each guest named, one after
// the other.
func careCommand(f *cli.Factory, use, short, long, example string, ask func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args:              cli.Some("GUEST"),
		ValidArgsFunction: f.Complete(0, cli.GuestNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			var failed cli.ManyError
			for _, guest := range args {
				if err := ask(cmd.Context(), c, guest); err != nil {
					failed = append(failed, err)
				}
			}
			if len(failed) > 0 {
				return failed
			}
			return nil
		},
	}
}
