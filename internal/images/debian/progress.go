package debian

import (
	"regexp"
	"strconv"
	"strings"

	"lodge/internal/images"
)

// progress reads what mmdebstrap, apt and dpkg say. A tree is made in two
// rounds, the essential packages and then the rest, and each counts its own.
type progress struct {
	told     images.Told
	total    uint64 // packages of this round
	counts   [3]uint64
	lists    bool     // "Get:" lines are package lists now
	troubles []string // what apt complained of
}

// The steps that are counted.
const (
	fetching = iota
	unpacking
	configuring
)

var stepNames = [...]string{"fetching packages", "unpacking", "configuring"}

var newlyInstalled = regexp.MustCompile(`(\d+) newly installed`)

func (p *progress) line(s string) {
	word, rest, _ := strings.Cut(s, " ")
	switch {
	case strings.HasPrefix(s, "I: running apt-get update"):
		p.lists = true
		p.told("fetching package lists", 0, 0, "", "")
	case strings.HasPrefix(s, "I: extracting"):
		p.told("extracting", 0, 0, "", "")
	case strings.HasPrefix(s, "I: cleaning"):
		p.told("cleaning", 0, 0, "", "")
	case newlyInstalled.MatchString(s):
		p.total, _ = strconv.ParseUint(newlyInstalled.FindStringSubmatch(s)[1], 10, 64)
		p.counts, p.lists = [3]uint64{}, false
	case strings.HasPrefix(word, "Get:"):
		if p.lists {
			p.told("fetching package lists", 0, 0, "", rest)
			return
		}
		p.count(fetching, rest)
	case word == "Unpacking":
		p.count(unpacking, rest)
	case word == "Setting" && strings.HasPrefix(rest, "up "):
		p.count(configuring, strings.TrimPrefix(rest, "up "))
	case word == "E:", word == "W:", word == "Err:", strings.Contains(s, "No space left on device"):
		p.trouble(s)
	}
}

func (p *progress) count(step int, note string) {
	p.counts[step]++
	p.told(stepNames[step], p.counts[step], max(p.total, p.counts[step]), "", strings.TrimSuffix(note, " ..."))
}

// trouble keeps the first complaints: later ones follow from them.
func (p *progress) trouble(s string) {
	if len(p.troubles) < 4 {
		p.troubles = append(p.troubles, s)
	}
}
