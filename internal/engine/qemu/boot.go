package qemu

import (
	"bytes"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// bootWatch sees whether what a guest boots from its own disk gets anywhere.
// Nothing tells: firmware has no way to, and what it writes to the console is
// for people. So until an operating system runs, it is looked at now and then.
type bootWatch struct {
	l     *link
	parts engine.Parts
	anew  chan struct{} // the machine began anew
	from  atomic.Int64  // how much the console had said when it did
}

const (
	// bootPace is how often a guest is looked at that boots.
	bootPace = 2 * time.Second
	// stillFor is how long a guest may do nothing before it is said to wait.
	stillFor = 30 * time.Second
)

func newBootWatch(l *link, parts engine.Parts) *bootWatch {
	b := &bootWatch{l: l, parts: parts, anew: make(chan struct{}, 1)}
	go b.run()
	return b
}

// reset is told that the machine began anew.
func (b *bootWatch) reset() {
	_, said := engine.ConsoleTail(b.parts)
	b.from.Store(said)
	select {
	case b.anew <- struct{}{}:
	default:
	}
}

func (b *bootWatch) run() {
	for b.l.life.Err() == nil {
		b.follow()
		select {
		case <-b.anew:
		case <-b.l.life.Done():
		}
	}
}

// follow looks at one boot until an operating system runs.
func (b *bootWatch) follow() {
	var last progress
	since := time.Now()
	for b.l.life.Err() == nil {
		b.l.sleep(bootPace)
		if paused(b.l.state()) {
			since = time.Now()
			continue
		}
		runs, err := b.systemRuns()
		if err != nil {
			continue // the monitor comes back, or the guest ends
		}
		if runs {
			b.l.note(func() { b.l.noBoot = nil })
			return
		}
		now, text := b.progress()
		if now != last {
			last, since = now, time.Now()
		}
		found := verdict(text, time.Since(since) >= stillFor)
		b.l.note(func() { b.l.noBoot = found })
	}
}

// progress is what changes as long as a boot goes on.
type progress struct {
	console int64  // bytes
	read    uint64 // from all disks
}

// firmwareStarts is what a BIOS says first.
const firmwareStarts = "SeaBIOS (version "

func (b *bootWatch) progress() (p progress, text string) {
	raw, n := engine.ConsoleTail(b.parts)
	p.console = n
	raw = current(raw, n-b.from.Load())
	var all []struct {
		Stats struct {
			Read uint64 `json:"rd_operations"`
		} `json:"stats"`
	}
	if err := b.l.do(b.l.life, "query-blockstats", nil, &all); err == nil {
		for _, d := range all {
			p.read += d.Stats.Read
		}
	}
	return p, plain(raw)
}

// current is what a console said since the machine began anew: since a BIOS began,
// or as many of the last bytes as were counted since. The count is wrong, below
// zero, when so much was said that the log no longer holds all of the run.
func current(text []byte, since int64) []byte {
	if i := bytes.LastIndex(text, []byte(firmwareStarts)); i >= 0 {
		return text[i:]
	}
	if since < 0 || since > int64(len(text)) {
		return text
	}
	return text[int64(len(text))-since:]
}

// systemRuns reports whether the first processor runs an operating system.
func (b *bootWatch) systemRuns() (bool, error) {
	var text string
	err := b.l.do(b.l.life, "human-monitor-command", map[string]any{"command-line": "info registers"}, &text)
	return systemIn(text), err
}

var (
	controls   = regexp.MustCompile(`\bCR0=([0-9a-fA-F]{1,16})\b`)
	interrupts = regexp.MustCompile(`\bIDT= *([0-9a-fA-F]{1,16})\b`)
)

const (
	paging = 1 << 31
	// kernelSpace is where no firmware lies, which runs where memory is, and
	// every operating system of today has its kernel.
	kernelSpace = 0xc000_0000
)

// systemIn tells from a processor's registers whether an operating system has
// it: a BIOS and boot loaders do without paging, and UEFI pages to where memory
// is.
func systemIn(registers string) bool {
	number := func(of *regexp.Regexp) uint64 {
		m := of.FindStringSubmatch(registers)
		if m == nil {
			return 0
		}
		n, _ := strconv.ParseUint(m[1], 16, 64) // digits were matched
		return n
	}
	return number(controls)&paging != 0 && number(interrupts) >= kernelSpace
}

// terminalMoves are what moves a terminal's cursor, which firmware writes
// instead of lines, and other orders to terminals.
var (
	terminalMoves  = regexp.MustCompile("(?:\x1b\\[([0-9]*);?([0-9]*)[Hf])+")
	terminalOrders = regexp.MustCompile("\x1b(\\[[0-9;?=]*[A-Za-z]|[()][A-Z0-9]|[=>c])")
	emptyLines     = regexp.MustCompile("\n[ \t\n]*\n")
)

// plain is a console's text as lines. A jump of the cursor begins a new one if it
// leads to another line.
func plain(console []byte) string {
	text := moved(strings.ReplaceAll(string(console), "\r\n", "\n"))
	text = terminalOrders.ReplaceAllString(text, "")
	text = strings.Map(func(r rune) rune {
		switch {
		case r == '\r':
			return '\n'
		case r != '\n' && r < ' ' || r == 0x7f:
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.TrimSpace(emptyLines.ReplaceAllString(text, "\n"))
}

// moved makes lines of a text in which the cursor jumps: a jump begins a new line
// if it leads to another than the last one did, and not to where the text just
// ended.
func moved(text string) string {
	var out strings.Builder
	row, from := "", 0
	for _, m := range terminalMoves.FindAllStringSubmatchIndex(text, -1) {
		out.WriteString(text[from:m[0]])
		from = m[1]
		was := row
		row = strings.TrimLeft(text[m[2]:m[3]], "0")
		line := out.String()[strings.LastIndexByte(out.String(), '\n')+1:]
		column, _ := strconv.Atoi(text[m[4]:m[5]]) // 0: the first
		if row != was && (line == "" || column != len(terminalOrders.ReplaceAllString(line, ""))+1) {
			out.WriteByte('\n')
		}
	}
	out.WriteString(text[from:])
	return out.String()
}

// signs are what firmware says when it has nothing to boot.
var signs = []struct {
	text *regexp.Regexp
	why  string
	hint string
}{
	{regexp.MustCompile(`(?s)BdsDxe: failed to load [^\n]*: (Access Denied|Security Violation)`), "the firmware does not boot what nobody has signed whom it trusts (Secure Boot)",
		"boot a signed loader, or launch it with --firmware uefi"},
	{regexp.MustCompile(`Verification failed: \(0x1A\) Security Violation`), "its boot loader is not signed by anybody whom the firmware trusts (Secure Boot)",
		"boot a signed loader, or launch it with --firmware uefi"},
	{regexp.MustCompile(`No bootable device\.`), "its BIOS found nothing to boot", firmwareHint},
	{regexp.MustCompile(`BdsDxe: No bootable option or device was found`), "its firmware found nothing to boot", firmwareHint},
	{regexp.MustCompile(`(?s)UEFI Interactive Shell.*Shell>`), "its firmware found nothing to boot, and shows its own shell", firmwareHint},
}

const (
	firmwareHint = "is there a boot loader on its disk, for this --firmware? attach a disc to boot from: lodge attach iso GUEST FILE, or see lodge screenshot GUEST"
	waitsHint    = "it may wait for a key: see lodge console GUEST or lodge screenshot GUEST, press keys with lodge sendkey GUEST"
	// noBootLines is how much of a console is shown.
	noBootLines = 12
)

// verdict tells from the end of the console of a guest that no operating system
// runs in why that is; nil while it may still come. Such a guest is still when
// it has neither written nor read anything for a while.
func verdict(text string, still bool) *guest.NoBoot {
	lines := strings.Split(text, "\n")
	last := strings.Join(lines[max(0, len(lines)-noBootLines):], "\n")
	for _, s := range signs {
		if s.text.MatchString(text) {
			return &guest.NoBoot{Why: s.why, Hint: s.hint, Last: last}
		}
	}
	if !still {
		return nil
	}
	why := "its firmware or boot loader waits, and no operating system has started"
	if end := strings.TrimSpace(lines[len(lines)-1]); end != "" {
		why += "; it said last: " + end
	}
	return &guest.NoBoot{Why: why, Hint: waitsHint, Last: last}
}
