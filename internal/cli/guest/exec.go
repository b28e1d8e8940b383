package guest

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/internal/cli"
)

type execOptions struct {
	*cli.Factory
	input bool
	wait  cli.SecondsFlag
	ask   api.ExecRequest
}

// NewExec makes "lodge exec".
func NewExec(f *cli.Factory) *cobra.Command {
	o := &execOptions{Factory: f}
	cmd := &cobra.Command{
		Use: "exec GUEST [--] COMMAND…", Short: "Run a program in a guest",
		Long: `Run a program in a running guest and end with its exit status.

INT, TERM and HUP are passed on to it. When both ends are terminals and neither -i
nor -t is given, it is as if both were. Flags go before the guest's name.`,
		Example: `  lodge exec web1 -- systemctl is-system-running
  lodge exec --user www-data --cwd /srv web1 -- ls -l
  lodge exec -i db1 -- psql < dump.sql`,
		Args:              execArgs,
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			if fl := cmd.Flags(); !fl.Changed("interactive") && !fl.Changed("tty") && f.Streams.InTTY && f.Streams.OutTTY {
				o.input, o.ask.TTY = true, true
			}
			o.ask.Command = args[1:]
			if o.ask.Command[0] == "--" {
				o.ask.Command = o.ask.Command[1:]
			}
			return o.run(cmd.Context(), args[0])
		},
	}
	fl := cmd.Flags()
	fl.SetInterspersed(false)
	fl.BoolVarP(&o.input, "interactive", "i", false, "give it our input")
	fl.BoolVarP(&o.ask.TTY, "tty", "t", false, "give it a terminal")
	o.userFlags(cmd)
	return cmd
}

func (o *execOptions) userFlags(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVarP(&o.ask.User, "user", "u", "", "user, and group after a colon, by name or number (default root)")
	fl.StringArrayVarP(&o.ask.Env, "env", "e", nil, "environment variable KEY=VALUE")
	fl.Var(&o.wait, "wait", "wait at most this long for a guest that boots (default: 10m on a terminal, else not at all)")
	fl.StringVarP(&o.ask.Cwd, "cwd", "w", "", "directory to run in (default: the user's home)")
}

func execArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cli.Usagef(cmd, "GUEST is missing")
	}
	if len(args) == 1 || len(args) == 2 && args[1] == "--" {
		return cli.Usagef(cmd, "COMMAND is missing")
	}
	return nil
}

func newShell(f *cli.Factory) *cobra.Command {
	o := &execOptions{Factory: f, input: true}
	cmd := &cobra.Command{
		Use: "shell GUEST", Short: "Open a shell in a guest", Aliases: []string{"sh"},
		Example:           "  lodge shell web1\n  echo 'uname -a' | lodge shell web1",
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.ask.TTY = f.Streams.InTTY
			o.ask.Command = []string{"/bin/sh", "-c", "[ -x /bin/bash ] && exec /bin/bash -l; exec /bin/sh -l"}
			return o.run(cmd.Context(), args[0])
		},
	}
	o.userFlags(cmd)
	return cmd
}

// bootPatience is how many seconds a person at a terminal waits for a guest that
// boots, before it is said that it does not answer.
const bootPatience = 600

func (o *execOptions) run(ctx context.Context, guest string) error {
	c, err := o.Client()
	if err != nil {
		return err
	}
	if o.ask.TTY {
		o.ask.Rows, o.ask.Cols = o.Streams.Size()
		if t := os.Getenv("TERM"); t != "" {
			o.ask.Env = append([]string{"TERM=" + t}, o.ask.Env...)
		}
	}
	// Its end is sent nevertheless: a lodged that is older waits for it.
	o.ask.NoInput = !o.input && !o.ask.TTY
	switch {
	case o.wait.Value != nil:
		o.ask.Wait = *o.wait.Value
	case o.Streams.ErrTTY:
		o.ask.Wait = bootPatience
	}
	s, err := c.Exec(ctx, guest, o.ask)
	if err != nil {
		return err
	}
	defer s.Close()
	s.Note = func(words string) { o.Streams.Notef("%s\r", cli.Clean(words)) }
	code, err := attach(ctx, o.Factory, s, attachment{input: o.input, tty: o.ask.TTY})
	if e, ok := errors.AsType[*api.Error](err); ok && e.Field == "argv" {
		return &cli.CommandError{Err: e}
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return cli.Exit(code)
	}
	return nil
}
