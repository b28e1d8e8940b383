package plan

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"lodge/test/sandbox"
)

// helper builds the launch helper, or skips.
func helper(t *testing.T) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "launch")
	if text, err := exec.Command("../helper/build.sh", out).CombinedOutput(); err != nil {
		sandbox.Missing(t, fmt.Sprintf("the launch helper cannot be built here: %v: %s", err, text))
	}
	return out
}

// run gives plan to the helper and returns what it reported.
func run(t *testing.T, helper string, plan []byte) (string, int) {
	t.Helper()
	in, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := in.WriteAt(plan, 0); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(helper)
	cmd.ExtraFiles = []*os.File{in, w}
	err = cmd.Run()
	w.Close()
	if exit := (&exec.ExitError{}); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.ReadFrom(r)
	if cmd.ProcessState.Exited() {
		return b.String(), cmd.ProcessState.ExitCode()
	}
	return b.String(), -1
}

func say(p *Plan, text string) {
	p.Do("say", unix.SYS_WRITE, Imm(4), p.Text(text), Imm(len(text)))
}

func TestOperations(t *testing.T) {
	h := helper(t)
	for _, c := range []struct {
		name string
		make func(p *Plan)
		want string
		code int
	}{
		{"end", func(p *Plan) { say(p, "hi"); p.End() }, "hi", 0},
		{"failing call", func(p *Plan) { p.Do("go away", unix.SYS_CHDIR, p.Text("/no/such")); p.End() }, "error go away: no such file or directory\n", 1},
		{"fail", func(p *Plan) { p.Fail("this", Imm(-75)) }, "error this: value too large\n", 1},
		{"an error without words", func(p *Plan) { p.Fail("this", Imm(99)) }, "error this: error number 99\n", 1},
		{"numeric", func(p *Plan) { p.Numeric = true; p.Fail("this", Imm(2)) }, "error 2 this: no such file or directory\n", 1},
		{"try", func(p *Plan) {
			r, m := p.Try(unix.SYS_CHDIR, p.Text("/no/such")), p.Mark()
			p.JumpIf(r, Imm(-int64(unix.ENOENT)), m)
			say(p, "wrong")
			p.Here(m)
			say(p, "right")
			p.End()
		}, "right", 0},
		{"loop and decimal", func(p *Plan) {
			i, again := p.New(), p.Mark()
			at, word := p.Space(TextLen), p.Space(8)
			p.Set(i, Imm(8))
			p.Here(again)
			n := p.Decimal(at, i)
			p.Do("say", unix.SYS_WRITE, Imm(4), at, n)
			p.Store32(word, i)
			p.LoadTo(i, word)
			next := p.Mark()
			p.JumpUnless(i, Imm(8), next)
			p.Set(i, Imm(10))
			p.Jump(again)
			p.Here(next)
			p.End()
		}, "810", 0},
		{"signed numbers", func(p *Plan) {
			word, m := p.Bytes([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}), p.Mark()
			p.JumpBelow(p.Load(word), Imm(0), m)
			say(p, "wrong")
			p.Here(m)
			p.End()
		}, "", 0},
		{"differ", func(p *Plan) {
			a, b, m := p.Bytes([]byte("abc")), p.Bytes([]byte("abd")), p.Mark()
			p.JumpUnless(p.Differ(a, b, 2), Imm(0), m)
			p.JumpIf(p.Differ(a, b, 3), Imm(0), m)
			say(p, "right")
			p.Here(m)
			p.End()
		}, "right", 0},
		{"address outside of the data", func(p *Plan) { p.Do("x", unix.SYS_CHDIR, At(1<<20)) }, "error x: invalid argument\n", 1},
		{"store outside of the data", func(p *Plan) { p.Space(8); p.Store64(12, Imm(1)) }, "invalid argument\n", 1},
		{"negative place", func(p *Plan) { p.add(op{code: opStore32, args: []Arg{Imm(-4), Imm(1)}}) }, "invalid argument\n", 1},
		{"running off the end", func(p *Plan) { say(p, "hi ") }, "hi error ", 1},
		{"unknown operation", func(p *Plan) { p.add(op{code: 99, label: p.Text("odd")}) }, "odd", 1},
		{"an unfinished child dies with its parent", func(p *Plan) {
			args, pidfd, child := p.Space(88), p.Space(8), p.Mark()
			p.Store64(args, Imm(unix.CLONE_VM|unix.CLONE_FILES|unix.CLONE_PIDFD))
			p.Store64(args+8, pidfd)
			p.Spawn("child", args, child)
			p.Fail("parent", Imm(1))
			p.Here(child)
			p.Do("sleep", unix.SYS_PPOLL, Imm(0), Imm(0), Imm(0), Imm(0), Imm(0))
		}, "error parent: operation not permitted\n", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p Plan
			c.make(&p)
			b, err := p.Compile()
			if err != nil {
				t.Fatal(err)
			}
			if out, code := run(t, h, b); !strings.Contains(out, c.want) || code != c.code {
				t.Errorf("%d %q, want %d %q", code, out, c.code, c.want)
			}
		})
	}
}

// TestDamagedPlans checks that the helper refuses what is not a plan.
func TestDamagedPlans(t *testing.T) {
	h := helper(t)
	var p Plan
	say(&p, "hi")
	p.End()
	good, err := p.Compile()
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func(b []byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"cut":            func(b []byte) []byte { return b[:len(b)-9] },
		"other magic":    func(b []byte) []byte { b[0]++; return b },
		"many ops":       func(b []byte) []byte { binary.LittleEndian.PutUint32(b[8:], 1<<17); return b },
		"data too long":  func(b []byte) []byte { binary.LittleEndian.PutUint32(b[16:], 1<<30); return b },
		"data in ops":    func(b []byte) []byte { binary.LittleEndian.PutUint32(b[12:], 40); return b },
		"enormous total": func(b []byte) []byte { binary.LittleEndian.PutUint32(b[4:], 1<<31); return b },
	} {
		out, code := run(t, h, damage(bytes.Clone(good)))
		if code != 1 || !strings.HasPrefix(out, "error ") {
			t.Errorf("%s: %d %q", name, code, out)
		}
	}
}

func TestCompileRefuses(t *testing.T) {
	var nowhere Plan
	nowhere.Jump(nowhere.Mark())
	var greedy Plan
	for range 300 {
		greedy.New()
	}
	var long Plan
	long.Space(maxPlan)
	for _, p := range []*Plan{&nowhere, &greedy, &long} {
		if _, err := p.Compile(); err == nil {
			t.Error("compiled")
		}
	}
}
