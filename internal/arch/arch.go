// Package arch holds the laws of the house: who may import whom, how long a
// function may be, where a driver's name may appear. Its test is run with all
// others, so a change that leans on the walls fails at once.
package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	module        = "lodge/"
	maxFile       = 600 // lines
	maxFunction   = 80  // lines
	maxMethods    = 9   // of an interface
	maxComplexity = 15  // cyclomatic: 1 + branches
)

// Pure packages decide; they do not touch the world.
var impure = []string{"context", "crypto/rand", "io", "log", "log/slog", "math/rand", "math/rand/v2", "net", "net/http", "os", "sync", "syscall"}

// driver names may appear as a word in code (not in comments) only in their own
// folder and where the daemon wires them: a new driver is one folder and one
// line. Names that are also ordinary words are left out.
var drivers = map[string]string{
	"oslevel": "internal/engine/oslevel",
	"uml":     "internal/engine/uml",
	"btrfs":   "internal/storage/btrfs",
}

// where a driver's name may appear besides its folder: where it is wired, where
// the host's fitness for it is judged, and where the command line's help gives
// examples.
var wiring = []string{"internal/daemon", "internal/arch", "internal/doctor", "internal/cli", "test"}

// Check returns every breach of the laws below root, a line each. layers is the
// text of layers.txt.
func Check(root fs.FS, layers string) ([]string, error) {
	rules, faults := parseLayers(layers)
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if base := path.Base(name); name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules" || name == "bin" || name == "build") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") || path.Dir(name) == "." {
			return nil
		}
		src, err := fs.ReadFile(root, name)
		if err != nil {
			return err
		}
		more, err := checkFile(name, src, rules)
		faults = append(faults, more...)
		return err
	})
	return faults, err
}

func checkFile(name string, src []byte, rules []layer) ([]string, error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, name, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	if ast.IsGenerated(f) {
		return nil, nil
	}
	var faults []string
	say := func(format string, args ...any) { faults = append(faults, name+": "+fmt.Sprintf(format, args...)) }
	if n := strings.Count(string(src), "\n"); n > maxFile {
		say("%d lines, at most %d are allowed", n, maxFile)
	}
	checkImports(path.Dir(name), f, rules, say)
	checkDrivers(path.Dir(name), f, say)
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			checkFunction(set, n, say)
		case *ast.InterfaceType:
			if n.Methods.NumFields() > maxMethods {
				say("interface of %d methods, at most %d are allowed", n.Methods.NumFields(), maxMethods)
			}
		}
		return true
	})
	return faults, nil
}

func checkImports(pkg string, f *ast.File, rules []layer, say func(string, ...any)) {
	for _, im := range f.Imports {
		to, _ := strconv.Unquote(im.Path.Value)
		if within(pkg, "internal/model") && slices.Contains(impure, to) {
			say("package model is pure and may not import %s", to)
		}
		if to, ours := strings.CutPrefix(to, module); ours && !allowed(rules, pkg, to) {
			say("%s may not import %s", pkg, to)
		}
	}
}

func checkFunction(set *token.FileSet, n *ast.FuncDecl, say func(string, ...any)) {
	if lines := set.Position(n.End()).Line - set.Position(n.Pos()).Line + 1; lines > maxFunction {
		say("%s has %d lines, at most %d are allowed", n.Name, lines, maxFunction)
	}
	if n.Name.Name == "init" && n.Recv == nil {
		say("no init functions: say it in daemon")
	}
	if c := complexity(n); c > maxComplexity {
		say("%s has a cyclomatic complexity of %d, at most %d is allowed", n.Name, c, maxComplexity)
	}
}

// complexity is McCabe's number: one more than the decisions in the function.
// A flat switch counts once and not once a case: it is a table, read at a
// glance.
func complexity(fn *ast.FuncDecl) int {
	c := 1
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncLit:
			return false // judged with the eye: it is usually an argument
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt, *ast.SwitchStmt, *ast.TypeSwitchStmt, *ast.SelectStmt:
			c++
		case *ast.BinaryExpr:
			if n.Op == token.LAND || n.Op == token.LOR {
				c++
			}
		}
		return true
	})
	return c
}

var word = regexp.MustCompile(`[A-Za-z0-9]+`)

func checkDrivers(pkg string, f *ast.File, say func(string, ...any)) {
	if slices.ContainsFunc(wiring, func(w string) bool { return within(pkg, w) }) {
		return
	}
	ast.Inspect(f, func(n ast.Node) bool {
		var text string
		switch n := n.(type) {
		case *ast.Field:
			return n.Tag == nil // documentation of a wire field may give examples
		case *ast.Ident:
			text = n.Name
		case *ast.BasicLit:
			text = n.Value
		}
		for _, w := range word.FindAllString(text, -1) {
			if home, ok := drivers[strings.ToLower(w)]; ok && !within(pkg, home) {
				say("the driver's name %q may appear only in %s and in the daemon's wiring", w, home)
			}
		}
		return true
	})
}

type layer struct {
	folder string
	sees   []string
}

func within(pkg, folder string) bool { return pkg == folder || strings.HasPrefix(pkg, folder+"/") }

func allowed(layers []layer, from, to string) bool {
	i := slices.IndexFunc(layers, func(l layer) bool { return within(from, l.folder) })
	if i < 0 {
		return false // a folder that layers.txt does not know
	}
	room, _, _ := strings.Cut(strings.TrimPrefix(from, layers[i].folder+"/"), "/")
	return to == layers[i].folder || within(to, layers[i].folder+"/"+room) ||
		slices.ContainsFunc(layers[i].sees, func(s string) bool {
			if only, ok := strings.CutPrefix(s, "="); ok {
				return to == only
			}
			return within(to, s)
		})
}

func parseLayers(text string) (layers []layer, faults []string) {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		folder, sees, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		l := layer{strings.TrimSpace(folder), strings.Fields(sees)}
		for _, above := range layers {
			if slices.Contains(l.sees, above.folder) || slices.Contains(l.sees, "="+above.folder) {
				faults = append(faults, fmt.Sprintf("layers.txt: %s is below %s and may not see it", l.folder, above.folder))
			}
		}
		layers = append(layers, l)
	}
	return layers, faults
}
