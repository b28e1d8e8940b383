// Lodge divides a server into virtual servers. This program is its command line:
// it only speaks to lodged.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"lodge/internal/base/version"
	"lodge/internal/cli"
	"lodge/internal/cli/engine"
	"lodge/internal/cli/forward"
	"lodge/internal/cli/guest"
	"lodge/internal/cli/host"
	"lodge/internal/cli/image"
	"lodge/internal/cli/kernel"
	"lodge/internal/cli/manifest"
	"lodge/internal/cli/network"
	"lodge/internal/cli/op"
	"lodge/internal/cli/pool"
	"lodge/internal/cli/snapshot"
)

func main() { os.Exit(run()) }

// run is the program; it returns the exit code, so that what was deferred has
// been done by then.
func run() int {
	ctx, signals := cli.WatchSignals(context.Background())
	f := &cli.Factory{Streams: cli.SystemStreams(), Signals: signals, Version: version.Version}
	root := rootFor(f, os.Args[1:])
	err := root.ExecuteContext(ctx)
	if err != nil && ctx.Err() != nil {
		// However a command wrapped it: the signal is why it ended.
		err = interrupted(err)
	}
	cli.PrintError(f.Streams.Err, err)
	return cli.ExitCode(err)
}

const exitCodes = `The exit codes of lodge:

    0  done
    1  it failed, or the doctor found faults
    2  the command line cannot be understood
    3  what was named does not exist
    4  it exists already, or its state forbids it
    5  you may not
    6  lodged or a host cannot be reached
    7  the wait ran out; the work goes on
  130  interrupted

lodge exec, shell and run end with the exit status of the guest's program: 127 if
there is no such program in the guest, 126 if it cannot be run, 128 + N if signal
N ended it.`

// rootFor is newRoot without what args certainly do not mean: making all
// commands takes a third of the time that lodge exec does, and programs call
// that again and again.
func rootFor(f *cli.Factory, args []string) *cobra.Command {
	if len(args) == 0 || args[0] != "exec" {
		return newRoot(f)
	}
	root := newBare(f)
	root.AddCommand(guest.NewExec(f))
	return root
}

// newRoot puts the nouns together.
func newRoot(f *cli.Factory) *cobra.Command {
	root := newBare(f)
	add(root, "guests", "Guests:", guest.Commands(f)...)
	add(root, "things", "What guests need:", image.NewGroup(f), kernel.NewGroup(f), pool.NewGroup(f), network.NewGroup(f), forward.NewGroup(f), snapshot.NewGroup(f))
	add(root, "files", "Files:", manifest.Commands(f)...)
	add(root, "host", "The host:", append(host.Commands(f), engine.NewGroup(f), op.NewGroup(f), guest.NewGroup(f), guest.NewDebug(f, host.NewGraph(f)))...)
	root.AddCommand(&cobra.Command{Use: "exit-codes", Short: "What the exit codes mean", Long: exitCodes})
	return root
}

// newBare is the program without commands.
func newBare(f *cli.Factory) *cobra.Command {
	root := &cobra.Command{
		Use:   "lodge",
		Short: "Divide a server into virtual servers",
		Long: `Lodge divides a server into virtual servers.

It speaks to lodged at LODGE_HOST (unix:///path or https://host:port), by default
the local one; LODGE_TOKEN and LODGE_CACERT go with https.`,
		Example: `  lodge launch debian/12 web1 --publish 8080:80
  lodge ls
  lodge shell web1`,
		Version:       f.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cli.Commands,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(f.Streams.Out)
	root.SetErr(f.Streams.Err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &cli.UsageError{Err: err, Command: cmd.CommandPath()}
	})
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		// cobra checks this too, but only we make a usage error of it.
		if err := cmd.ValidateFlagGroups(); err != nil {
			return &cli.UsageError{Err: err, Command: cmd.CommandPath()}
		}
		return nil
	}
	f.Flags(root)
	return root
}

func add(root *cobra.Command, id, title string, cmds ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: id, Title: title})
	for _, c := range cmds {
		c.GroupID = id
	}
	root.AddCommand(cmds...)
}

// interrupted marks an error as caused by a signal, once.
func interrupted(err error) error {
	if cli.ExitCode(err) == cli.ExitInterrupted {
		return err
	}
	return fmt.Errorf("%w: %v", cli.ErrInterrupted, err)
}
