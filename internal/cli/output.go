package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"lodge/api"
)

// Output is the form that a command prints in.
type Output struct{ form OneOf }

// Flags adds -o.
func (o *Output) Flags(cmd *cobra.Command) {
	o.form = OneOf{Value: "table", Words: []string{"table", "json", "yaml"}}
	o.form.Var(cmd, "output", "o", "how to print")
}

// Table reports whether a person is to read it.
func (o *Output) Table() bool { return o.form.Value == "table" || o.form.Value == "" }

// Table is rows under a heading.
type Table struct {
	Header []string
	Rows   [][]string
}

// Row adds one row.
func (t *Table) Row(cells ...string) { t.Rows = append(t.Rows, cells) }

// Blank is a cell that stays empty: this line belongs to the one above.
const Blank = " "

// Write aligns the columns. Cells are made harmless, and empty ones shown as
// "-" so that a script can split on blanks.
func (t *Table) Write(w io.Writer) error {
	rows := t.Rows
	if t.Header != nil {
		rows = append([][]string{t.Header}, rows...)
	}
	var widths []int
	for _, r := range rows {
		for i, cell := range r {
			cell = shown(cell)
			r[i] = cell
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, cell := range r {
			b.WriteString(cell)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Fold joins words with commas into lines of at most width characters, if they
// are not longer themselves.
func Fold(words []string, width int) (lines []string) {
	for i, w := range words {
		if i < len(words)-1 {
			w += ","
		}
		if n := len(lines) - 1; n >= 0 && utf8.RuneCountInString(lines[n])+1+utf8.RuneCountInString(w) <= width {
			lines[n] += " " + w
		} else {
			lines = append(lines, w)
		}
	}
	return lines
}

func shown(cell string) string {
	if cell == Blank {
		return cell
	}
	if cell = strings.Join(strings.Fields(Clean(cell)), " "); cell == "" {
		return "-"
	}
	return cell
}

// Print writes v as JSON or YAML, or the table made of it.
func (f *Factory) Print(o *Output, v any, table func() *Table) error {
	if o.Table() {
		return table().Write(f.Streams.Out)
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if o.form.Value == "yaml" {
		if b, err = toYAML(b); err != nil {
			return fmt.Errorf("print: %w", err)
		}
		_, err = f.Streams.Out.Write(b)
		return err
	}
	_, err = f.Streams.Out.Write(append(b, '\n'))
	return err
}

// PrintList writes a list; an empty one is [] and never null.
func PrintList[T any](f *Factory, o *Output, list []T, header []string, row func(T) []string) error {
	if list == nil {
		list = []T{}
	}
	return f.Print(o, list, func() *Table {
		t := &Table{Header: header}
		for _, v := range list {
			t.Row(row(v)...)
		}
		return t
	})
}

// toYAML writes JSON as YAML with the fields in the same order.
func toYAML(b []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(b, &n); err != nil {
		return nil, err
	}
	plain(&n)
	return yaml.Marshal(&n)
}

// plain drops JSON's braces and quotes; what would then be read as something
// else keeps its quotes.
func plain(n *yaml.Node) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" || !oldBool(n.Value) {
		n.Style = 0
	}
	for _, c := range n.Content {
		plain(c)
	}
}

// oldBool reports whether readers of YAML 1.1 take the text for true or false.
func oldBool(s string) bool {
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "on", "off":
		return true
	}
	return false
}

// State is a word for whether something is ready, and what keeps it from that.
func State(ready bool, otherwise string, p *api.Problem) string {
	state := "ready"
	if !ready {
		state = otherwise
	}
	if p != nil {
		state += " (" + p.Code + ")"
	}
	return state
}

// PrintObject prints one value; for a person as YAML, which shows everything and
// is read well.
func (f *Factory) PrintObject(o *Output, v any) error {
	form := *o
	if form.Table() {
		form.form.Value = "yaml"
	}
	return f.Print(&form, v, nil)
}
