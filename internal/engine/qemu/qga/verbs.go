package qga

import (
	"context"
	"encoding/base64"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Info is what an agent says of itself.
type Info struct {
	Version  string
	commands map[string]bool
}

// commandsMax bounds how many commands an agent is believed to know.
const commandsMax = 1000

// Info asks the agent what it is.
func (c *Client) Info(ctx context.Context) (Info, error) {
	var r struct {
		Version  string `json:"version"`
		Commands []struct {
			Name    string `json:"name"`
			Enabled bool   `json:"enabled"`
		} `json:"supported_commands"`
	}
	if err := c.Do(ctx, "guest-info", nil, &r); err != nil {
		return Info{}, err
	}
	i := Info{Version: cut(r.Version), commands: map[string]bool{}}
	for _, command := range r.Commands[:min(len(r.Commands), commandsMax)] {
		if command.Enabled {
			i.commands[cut(command.Name)] = true
		}
	}
	return i, nil
}

// Can reports whether the agent carries out a command: some are compiled out,
// others forbidden by the guest's administrator.
func (i Info) Can(command string) bool { return i.commands[command] }

// addressesMax bounds how many addresses a guest may claim to have.
const addressesMax = 64

// Addresses asks which addresses the guest has on cards with these MACs, but
// for those that reach no further than the link.
func (c *Client) Addresses(ctx context.Context, macs []string) ([]string, error) {
	var r []struct {
		MAC string `json:"hardware-address"`
		IPs []struct {
			IP string `json:"ip-address"`
		} `json:"ip-addresses"`
	}
	if err := c.Do(ctx, "guest-network-get-interfaces", nil, &r); err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, m := range macs {
		ours[strings.ToLower(m)] = true
	}
	var all []string
	seen := map[netip.Addr]bool{}
	for _, card := range r {
		mac, err := net.ParseMAC(card.MAC)
		if err != nil || !ours[mac.String()] {
			continue
		}
		for _, ip := range card.IPs {
			a, err := netip.ParseAddr(ip.IP)
			if err != nil || a.Zone() != "" || !a.IsGlobalUnicast() || seen[a] || len(all) == addressesMax {
				continue
			}
			seen[a] = true
			all = append(all, a.String())
		}
	}
	return all, nil
}

// PowerOff asks the guest's init to power off. There is no reply: whether it
// does shows in what follows.
func (c *Client) PowerOff(ctx context.Context) error {
	return c.Tell(ctx, "guest-shutdown", map[string]string{"mode": "powerdown"})
}

// SetClock sets the guest's clock, and the one that it boots with.
func (c *Client) SetClock(ctx context.Context, now time.Time) error {
	return c.Do(ctx, "guest-set-time", map[string]int64{"time": now.UnixNano()}, nil)
}

// SetPassword gives a user of the guest a new password, by its hash.
func (c *Client) SetPassword(ctx context.Context, user, hash string) error {
	args := map[string]any{"username": user, "password": []byte(hash), "crypted": true}
	return c.Do(ctx, "guest-set-user-password", args, nil)
}

// Authorize adds to the keys that a user of the guest may log in with.
func (c *Client) Authorize(ctx context.Context, user string, keys []string) error {
	return c.Do(ctx, "guest-ssh-add-authorized-keys", map[string]any{"username": user, "keys": keys}, nil)
}

// Trim tells the guest's disks what its file systems do not use, and returns how
// many bytes those that could be trimmed said that is.
func (c *Client) Trim(ctx context.Context) (uint64, error) {
	var r struct {
		Paths []struct {
			Trimmed uint64 `json:"trimmed"`
		} `json:"paths"`
	}
	err := c.Do(ctx, "guest-fstrim", nil, &r)
	var n uint64
	for _, p := range r.Paths {
		n += p.Trimmed
	}
	return n, err
}

// Freeze brings the guest's file systems to rest until Thaw. The agent has no
// time limit for that: whoever forgets it leaves a guest that hangs. It returns
// how many there are.
func (c *Client) Freeze(ctx context.Context) (n int, err error) {
	return n, c.Do(ctx, "guest-fsfreeze-freeze", nil, &n)
}

// Thaw lets the guest's file systems go on, and returns how many of them had
// not by themselves.
func (c *Client) Thaw(ctx context.Context) (n int, err error) {
	return n, c.Do(ctx, "guest-fsfreeze-thaw", nil, &n)
}

// Frozen reports whether the agent brought file systems to rest.
func (c *Client) Frozen(ctx context.Context) (bool, error) {
	var s string
	err := c.Do(ctx, "guest-fsfreeze-status", nil, &s)
	return s == "frozen", err
}

// OutputMax is how much of a program's output the agent keeps, for each of its
// two streams.
const OutputMax = 16 << 20

// resultMax is the longest reply about a program: both streams as text.
const resultMax = 2*OutputMax/3*4 + 64<<10

// Program is one to run in the guest, as the agent itself.
type Program struct {
	Path    string   // searched for in the agent's PATH
	Args    []string // without the program's name
	Env     []string // all of it; nil: the agent's
	Input   []byte
	Capture bool // its output; else it has none
}

// Start runs a program and returns its process id.
func (c *Client) Start(ctx context.Context, p Program) (pid int64, err error) {
	var r struct {
		Pid int64 `json:"pid"`
	}
	args := map[string]any{"path": p.Path, "arg": append([]string{}, p.Args...), "capture-output": p.Capture}
	if p.Env != nil {
		args["env"] = p.Env
	}
	if len(p.Input) > 0 {
		args["input-data"] = base64.StdEncoding.EncodeToString(p.Input)
	}
	err = c.Do(ctx, "guest-exec", args, &r)
	return r.Pid, err
}

// Result is how a program ended and what it said.
type Result struct {
	Exited   bool
	Status   int // as shells have it: 128 and the signal for one that was killed
	Out, Err []byte
	Cut      bool // it said more than the agent keeps
}

// Result asks how a program is doing. The agent forgets it once it said how it
// ended.
func (c *Client) Result(ctx context.Context, pid int64) (Result, error) {
	var r struct {
		Exited bool   `json:"exited"`
		Code   int    `json:"exitcode"`
		Signal int    `json:"signal"`
		Out    []byte `json:"out-data"`
		Err    []byte `json:"err-data"`
		OutCut bool   `json:"out-truncated"`
		ErrCut bool   `json:"err-truncated"`
	}
	err := c.do(ctx, "guest-exec-status", map[string]int64{"pid": pid}, &r, resultMax)
	res := Result{Exited: r.Exited, Status: r.Code & 0xff, Out: r.Out, Err: r.Err, Cut: r.OutCut || r.ErrCut}
	if r.Signal != 0 {
		res.Status = (128 + r.Signal) & 0xff
	}
	return res, err
}
