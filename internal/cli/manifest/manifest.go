// Package manifest is the commands that make a file so.
package manifest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"lodge/api"
	"lodge/internal/cli"
)

// format is the long help of both commands.
const format = `The file is YAML of one or many documents, each with a kind (guest, network, pool,
forward, image) and the fields of its creation request:

  kind: guest
  name: web1
  image: debian/12
  memory: 1GiB            # or memory_bytes: 1073741824
  publish: ["8080:80"]
  power: on               # on, off or paused
  ---
  kind: network
  name: lab
  ipv4: 10.9.0.0/24

Sizes may be written as 512MiB for every field that ends in _bytes, with or
without that ending; times as 30s or 2m. A field that does not exist is refused.`

type options struct {
	*cli.Factory
	files    []string
	wait     cli.Waiting
	output   cli.Output
	dryRun   bool
	exitCode bool
}

// Commands makes "lodge apply" and "lodge diff".
func Commands(f *cli.Factory) []*cobra.Command {
	return []*cobra.Command{newApply(f), newDiff(f)}
}

func newApply(f *cli.Factory) *cobra.Command {
	o := &options{Factory: f}
	cmd := o.command("apply -f FILE", "Make what a file says so")
	cmd.Long = "Create what is missing and change what differs; nothing is removed that is not\nnamed, and applying again changes nothing.\n\n" + format
	cmd.Example = "  lodge apply -f shop.yaml\n  lodge apply -f shop.yaml --dry-run\n  generate | lodge apply -f -"
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "only show what would change")
	o.wait.Flags(cmd)
	return cmd
}

func newDiff(f *cli.Factory) *cobra.Command {
	o := &options{Factory: f, dryRun: true}
	cmd := o.command("diff -f FILE", "Show what applying a file would change")
	cmd.Long = "Show what lodge apply would change, and change nothing.\n\n" + format
	cmd.Example = "  lodge diff -f shop.yaml\n  lodge diff --exit-code -f shop.yaml && echo all is so"
	cmd.Flags().BoolVar(&o.exitCode, "exit-code", false, "end with 1 if anything would change")
	return cmd
}

func (o *options) command(use, short string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short,
		Args: cli.Args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(o.files) == 0 {
				return cli.Usagef(cmd, "-f FILE is missing")
			}
			return o.run(cmd.Context())
		},
	}
	cmd.Flags().StringArrayVarP(&o.files, "filename", "f", nil, `file to read; "-" is the standard input; may be given again`)
	o.output.Flags(cmd)
	return cmd
}

func (o *options) run(ctx context.Context) error {
	ask := api.ApplyRequest{DryRun: o.dryRun}
	for _, name := range o.files {
		list, err := o.read(name)
		if err != nil {
			return err
		}
		ask.Manifests = append(ask.Manifests, list...)
	}
	c, err := o.Client()
	if err != nil {
		return err
	}
	result, err := c.Apply(ctx, ask)
	if err != nil {
		return err
	}
	if o.output.Table() {
		err = o.tell(result)
	} else {
		err = o.Print(&o.output, result, nil)
	}
	if err != nil {
		return err
	}
	if o.dryRun {
		if o.exitCode && changes(result) > 0 {
			return cli.Exit(cli.ExitFailed)
		}
		return nil
	}
	return o.finish(ctx, result.Operations)
}

func (o *options) read(name string) ([]api.Manifest, error) {
	var in io.Reader = o.Streams.In
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		in = file
	}
	return Parse(name, in)
}

// finish waits for all of the work; what fails does not keep the rest from
// being waited for.
func (o *options) finish(ctx context.Context, ops []api.Operation) error {
	if o.wait.No() {
		for _, op := range ops {
			fmt.Fprintln(o.Streams.Out, op.ID)
		}
		return nil
	}
	var many cli.ManyError
	for _, op := range ops {
		if _, err := o.Follow(ctx, &o.wait, op.ID); err != nil {
			many = append(many, err)
			if ctx.Err() != nil {
				break
			}
		}
	}
	switch len(many) {
	case 0:
		return nil
	case 1:
		return many[0]
	}
	return many
}

func changes(r api.ApplyResult) int {
	n := 0
	for _, c := range r.Changes {
		if c.Action != "none" {
			n++
		}
	}
	return n
}

// tell writes the changes like a diff.
func (o *options) tell(r api.ApplyResult) error {
	marks := map[string]string{"create": "+", "change": "~", "none": "="}
	var b strings.Builder
	for _, c := range r.Changes {
		fmt.Fprintf(&b, "%s %s/%s\n", marks[c.Action], c.Kind, c.Name)
		for _, f := range c.Fields {
			from := compact(f.From)
			if c.Action == "create" || from == "" {
				fmt.Fprintf(&b, "    %s: %s\n", f.Field, compact(f.To))
				continue
			}
			fmt.Fprintf(&b, "    %s: %s -> %s\n", f.Field, from, compact(f.To))
		}
	}
	_, err := io.WriteString(o.Streams.Out, cli.Clean(b.String()))
	return err
}

func compact(raw json.RawMessage) string {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return string(raw)
	}
	return b.String()
}
