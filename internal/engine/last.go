package engine

import (
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"lodge/internal/keeper"
	"lodge/internal/model/guest"
)

const (
	// tailMax is how much of the end of a console is looked at, in bytes; a
	// panic writes a few thousand.
	tailMax = 32 << 10
	// lastMax is how many lines of it a person is shown.
	lastMax = 20
	// leadIn is how many of them stand up to and with the panic.
	leadIn = 6
	// panicCode is the exit status of a guest whose kernel panicked.
	panicCode = 1
)

// AgentSilent is the trouble of a guest that hangs, or has lost its agent.
const AgentSilent = "its agent does not answer"

// BeforeNow tells what an earlier daemon knew of the agent of a guest that runs as
// pid: that it was up, and whether it had fallen silent.
func BeforeNow(g guest.Guest, pid int) (up, silent bool) {
	s := g.Status
	if s.Pid != pid {
		return false, false // of another run
	}
	silent = s.Problem != nil && s.Problem.Message == AgentSilent
	return s.Ready || silent, silent
}

// SaidNothing is what a person is shown of a guest that ended badly before its
// console said anything.
const SaidNothing = "nothing, as if its kernel were damaged"

// What kernels write with their highest priority, so that no "quiet" keeps it
// back, and what the agent writes when a guest's only program has ended.
var (
	restarting  = regexp.MustCompile(`reboot: Restarting system`)
	poweringOff = regexp.MustCompile(`reboot: (Power down|System halted)`)
	panicking   = regexp.MustCompile(`Kernel panic - not syncing: `)
	finished    = regexp.MustCompile(`lodge-agent: the first program ended with status ([0-9]{1,3})\b`)
)

// LastWords tells from the end of its console how a guest with a kernel of its
// own ended, whose monitor ended by itself; see Ender. It is false where the
// console does not say.
func LastWords(parts Parts, e keeper.Exit) (is keeper.Exit, last string, known bool) {
	text, _ := ConsoleTail(parts)
	is = keeper.Exit{At: e.At}
	if m := lastMatch(finished, text); m != nil {
		is.Code, _ = strconv.Atoi(string(text[m[2]:m[3]])) // three digits are a number
		return is, linesOf(text), true
	}
	if m := lastMatch(panicking, text); m != nil { // a restart may follow
		is.Code = panicCode
		return is, linesAround(text, m[0]), true
	}
	restart, off := lastMatch(restarting, text), lastMatch(poweringOff, text)
	switch {
	case restart != nil && (off == nil || restart[0] > off[0]):
		is.Signal = syscall.SIGHUP
	case off != nil:
		is.Signal = syscall.SIGINT
	default:
		return e, linesOf(text), false
	}
	return is, "", true
}

// LastLines is the end of what a guest's console said since it was started last,
// as a person is shown it, whatever it says: of a monitor that failed, or a guest
// that is not well.
func LastLines(parts Parts) string {
	text, _ := ConsoleTail(parts)
	return linesOf(text)
}

// ConsoleTail is the end of what a guest's console said since it was started
// last, of at most some thousand bytes, and how much of that is kept in all.
func ConsoleTail(parts Parts) (text []byte, length int64) {
	return keeper.Said(ConsoleLog(parts.Dir), tailMax)
}

func lastMatch(what *regexp.Regexp, text []byte) []int {
	all := what.FindAllSubmatchIndex(text, -1)
	if all == nil {
		return nil
	}
	return all[len(all)-1]
}

// linesOf is the last lines of a console.
func linesOf(text []byte) string {
	lines := split(text)
	return strings.Join(lines[max(0, len(lines)-lastMax):], "\n")
}

// linesAround is the lines of a console about the one at a place.
func linesAround(text []byte, at int) string {
	before, after := split(text[:at]), split(text[at:])
	before[len(before)-1] += after[0]
	lines := append(before[max(0, len(before)-leadIn):], after[1:]...)
	return strings.Join(lines[:min(len(lines), lastMax)], "\n")
}

func split(text []byte) []string {
	return strings.Split(strings.Trim(strings.ReplaceAll(string(text), "\r", ""), "\n"), "\n")
}
