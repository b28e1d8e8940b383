package guest

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"lodge/internal/cli"
)

func newExplain(f *cli.Factory) *cobra.Command {
	var output cli.Output
	cmd := &cobra.Command{
		Use: "explain GUEST", Short: "Say where a guest is, where it should be, and what comes next",
		Example:           "  lodge explain web1\n  lodge explain web1 -o json",
		Args:              cli.Named("GUEST"),
		ValidArgsFunction: completeGuest(f),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.Client()
			if err != nil {
				return err
			}
			x, err := c.Explain(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return f.Print(&output, x, func() *cli.Table {
				t := &cli.Table{}
				t.Row("seen", x.Seen)
				t.Row("wanted", x.Wanted)
				t.Row("next", x.Next)
				for _, p := range x.Pending {
					t.Row("with the next start", p)
				}
				if p := x.Problem; p != nil {
					t.Row("problem", fmt.Sprintf("%s (%s)", p.Message, p.Code))
					if p.Hint != "" {
						t.Row("hint", p.Hint)
					}
				}
				name := "said last"
				for line := range strings.Lines(x.Last) {
					t.Row(name, strings.TrimSpace(line))
					name = cli.Blank
				}
				return t
			})
		},
	}
	output.Flags(cmd)
	return cmd
}
