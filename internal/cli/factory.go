// Package cli is what all nouns of the command line share: where a command gets
// its connection and streams from, how values are printed, how work is waited
// for, and how errors end the program.
//
// A noun is a folder beside this file and a verb is a file in it: an options
// struct, a constructor that only declares, and a run method. The rules of the
// house's voice: data goes to stdout and talk to stderr; nothing moves or is
// coloured unless it is a terminal; an error is a line "lodge: error: …" and, if
// there is something to try, one "lodge: hint: …".
package cli

import (
	"context"
	"os"
	"time"

	"github.com/spf13/cobra"

	"lodge/api/client"
)

// Factory gives commands what they need when they need it. A command that talks
// to nobody makes no connection.
type Factory struct {
	Streams *Streams
	Signals *Signals
	Version string // of this program

	host   string
	client *client.Client
}

// Flags adds the flags that every command has.
func (f *Factory) Flags(root *cobra.Command) {
	root.PersistentFlags().StringVar(&f.host, "host", "", "address of lodged: unix:///path or https://host:port (default $LODGE_HOST)")
}

// Client returns the connection to lodged, made at the first call. It is not
// for concurrent first calls.
func (f *Factory) Client() (*client.Client, error) {
	if f.client != nil {
		return f.client, nil
	}
	host := f.host
	if host == "" {
		host = os.Getenv("LODGE_HOST")
	}
	c, err := client.New(client.Options{Host: host, Token: os.Getenv("LODGE_TOKEN"), CACert: os.Getenv("LODGE_CACERT")})
	if err != nil {
		return nil, err
	}
	f.client = c
	return c, nil
}

// completionPatience is how long a person waits for a completion before it is
// an annoyance.
const completionPatience = 500 * time.Millisecond

// Complete completes arguments with the names that list returns; max bounds how
// many arguments are names, 0 is no bound. It is silent when lodged is away.
func (f *Factory) Complete(limit int, list func(context.Context, *client.Client) ([]string, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if limit > 0 && len(args) >= limit {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := f.Client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		names, err := list(ctx, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return without(names, args), cobra.ShellCompDirectiveNoFileComp
	}
}

// without leaves out what was already given.
func without(names, given []string) []string {
	seen := make(map[string]bool, len(given))
	for _, g := range given {
		seen[g] = true
	}
	var left []string
	for _, n := range names {
		if !seen[n] {
			left = append(left, n)
		}
	}
	return left
}

// GuestNames, ImageNames, KernelNames, PoolNames, NetworkNames, ForwardNames and OperationIDs
// are the lists to complete with.
func GuestNames(ctx context.Context, c *client.Client) ([]string, error) {
	v, _, err := c.Guests(ctx)
	var names []string
	for _, g := range v {
		names = append(names, g.Name)
	}
	return names, err
}

// ImageNames lists the images' names.
func ImageNames(ctx context.Context, c *client.Client) ([]string, error) {
	v, err := c.Images(ctx)
	var names []string
	for _, i := range v {
		names = append(names, i.Name)
	}
	return names, err
}

// KernelNames lists the kernels' names.
func KernelNames(ctx context.Context, c *client.Client) ([]string, error) {
	v, err := c.Kernels(ctx)
	var names []string
	for _, k := range v {
		names = append(names, k.Name)
	}
	return names, err
}

// EngineNames lists the engines' names.
func EngineNames(ctx context.Context, c *client.Client) ([]string, error) {
	v, err := c.Engines(ctx)
	var names []string
	for _, e := range v {
		names = append(names, e.Name+"\t"+e.Model)
	}
	return names, err
}

// PoolNames lists the pools' names.
func PoolNames(ctx context.Context, c *client.Client) ([]string, error) {
	v, err := c.Pools(ctx)
	var names []string
	for _, p := range v {
		names = append(names, p.Name)
	}
	return names, err
}

// NetworkNames lists the networks' names.
func NetworkNames(ctx context.Context, c *client.Client) ([]string, error) {
	v, err := c.Networks(ctx)
	var names []string
	for _, n := range v {
		names = append(names, n.Name)
	}
	return names, err
}

// ForwardNames lists the port forwards' names.
func ForwardNames(ctx context.Context, c *client.Client) ([]string, error) {
	v, err := c.Forwards(ctx)
	var names []string
	for _, w := range v {
		names = append(names, w.Name)
	}
	return names, err
}

// OperationIDs lists the operations under way, described by their verbs.
func OperationIDs(ctx context.Context, c *client.Client) ([]string, error) {
	v, err := c.Operations(ctx, false)
	var ids []string
	for _, o := range v {
		ids = append(ids, o.ID+"\t"+o.Verb)
	}
	return ids, err
}
