package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
)

func firewallChecks() []check {
	return []check{
		{"forwarding", "firewall", func(context.Context, Options) verdict {
			four, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
			six, _ := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
			return judgeForwarding(strings.TrimSpace(string(four)), strings.TrimSpace(string(six)))
		}},
		{"other firewalls", "firewall", func(ctx context.Context, o Options) verdict {
			if _, err := exec.LookPath("nft"); err != nil {
				return verdict{state: Warning, found: "nft is not installed", cause: "nobody can say whether another firewall drops guests' packets", fix: "apt-get install nftables"}
			}
			text, err := readRuleset(ctx)
			if err != nil {
				return verdict{state: Warning, found: "the rules cannot be read: " + err.Error(), cause: "nobody can say whether another firewall drops guests' packets", fix: "nft list ruleset"}
			}
			rules, err := parseRuleset(text)
			if err != nil {
				return verdict{state: Warning, found: err.Error(), cause: "nobody can say whether another firewall drops guests' packets", fix: "nft list ruleset"}
			}
			return judgeFirewall(rules, o.Bridges)
		}},
		{"old iptables", "firewall", func(ctx context.Context, _ Options) verdict {
			tables, _ := os.ReadFile("/proc/net/ip_tables_names")
			var policy []byte
			if strings.Contains(string(tables), "filter") {
				policy, _ = exec.CommandContext(ctx, "iptables-legacy", "-S", "FORWARD").Output()
			}
			return judgeLegacy(string(tables), string(policy))
		}},
	}
}

func judgeForwarding(four, six string) verdict {
	if four == "1" && (six == "1" || six == "") {
		return good("on")
	}
	return verdict{state: Warning, found: fmt.Sprintf("IPv4 %s, IPv6 %s", onOff(four), onOff(six)),
		cause: "guests reach the host but not the network behind it; the daemon turns it on with the first network",
		fix:   "sysctl -w net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"}
}

func onOff(s string) string {
	switch s {
	case "1":
		return "on"
	case "":
		return "absent"
	default:
		return "off"
	}
}

func judgeLegacy(tables, policy string) verdict {
	switch {
	case !strings.Contains(tables, "filter"):
		return good("not in use")
	case strings.Contains(policy, "-P FORWARD DROP"):
		return verdict{state: Fault, found: "its FORWARD chain drops what no rule accepts", cause: "guests' packets to other networks are dropped",
			fix: "iptables-legacy -I FORWARD -i lg+ -j ACCEPT && iptables-legacy -I FORWARD -o lg+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"}
	case policy == "":
		return verdict{state: Warning, found: "a filter table of the old iptables is loaded, and iptables-legacy is not there to read it",
			cause: "it may drop guests' packets", fix: "apt-get install iptables"}
	default:
		return good("its FORWARD chain accepts")
	}
}

// rulesetMax bounds what is read of the host's rules. 16 MiB are some 50,000
// rules; who has more must look for himself.
const rulesetMax = 16 << 20

func readRuleset(ctx context.Context) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "nft", "-j", "list", "ruleset")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(out, rulesetMax+1))
	if len(text) > rulesetMax {
		cmd.Process.Kill()
		err = fmt.Errorf("there are more than %d MiB of rules", rulesetMax>>20)
	}
	if werr := cmd.Wait(); err == nil {
		err = werr
	}
	return text, err
}

// ruleset is what matters of a host's nftables.
type ruleset struct {
	forward []chain         // base chains that forwarded packets pass
	chains  map[string]bool // all chains, as "family table name"
	accepts map[string][]string
}

// chain is one base chain.
type chain struct {
	Family, Table, Name, Policy string
	Rejects                     bool // a rule without condition drops or rejects what comes to it
}

func (c chain) key() string { return c.Family + " " + c.Table + " " + c.Name }

type nftObject struct {
	Chain *struct {
		Family, Table, Name, Hook, Policy string
	}
	Rule *struct {
		Family, Table, Chain string
		Expr                 []json.RawMessage
	}
}

// parseRuleset reads the answer of nft -j list ruleset. Rules come after the
// chain they are in, as nft prints them.
func parseRuleset(text []byte) (ruleset, error) {
	r := ruleset{chains: map[string]bool{}, accepts: map[string][]string{}}
	var doc struct {
		Nftables []nftObject `json:"nftables"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return r, fmt.Errorf("nft's answer is not understood: %w", err)
	}
	for _, o := range doc.Nftables {
		if c := o.Chain; c != nil {
			one := chain{Family: c.Family, Table: c.Table, Name: c.Name, Policy: c.Policy}
			r.chains[one.key()] = true
			if c.Hook == "forward" && c.Family != "bridge" && c.Family != "netdev" {
				r.forward = append(r.forward, one)
			}
		}
		if o.Rule == nil {
			continue
		}
		key := o.Rule.Family + " " + o.Rule.Table + " " + o.Rule.Chain
		iface, verdict := readRule(o.Rule.Expr)
		if iface != "" && verdict == "accept" {
			r.accepts[key] = append(r.accepts[key], iface)
		}
		if len(o.Rule.Expr) == 1 && (verdict == "drop" || verdict == "reject") {
			for i := range r.forward {
				r.forward[i].Rejects = r.forward[i].Rejects || r.forward[i].key() == key
			}
		}
	}
	return r, nil
}

// readRule returns the interface that a rule matches by name, and its verdict.
func readRule(exprs []json.RawMessage) (iface, verdict string) {
	for _, raw := range exprs {
		var e map[string]json.RawMessage
		if json.Unmarshal(raw, &e) != nil {
			continue
		}
		for _, v := range []string{"accept", "drop", "reject"} {
			if _, ok := e[v]; ok {
				verdict = v
			}
		}
		var m struct {
			Left struct {
				Meta struct{ Key string }
			}
			Right any
		}
		if json.Unmarshal(e["match"], &m) == nil && (m.Left.Meta.Key == "iifname" || m.Left.Meta.Key == "oifname") {
			iface, _ = m.Right.(string)
		}
	}
	return iface, verdict
}

// owner guesses from the chains beside it whose firewall a chain belongs to.
func (r ruleset) owner(c chain) string {
	beside := func(name string) bool { return r.chains[c.Family+" "+c.Table+" "+name] }
	switch {
	case c.Table == "firewalld":
		return "firewalld"
	case beside("ufw-before-forward") || beside("ufw6-before-forward"):
		return "ufw"
	case beside("DOCKER") || beside("DOCKER-USER"):
		return "docker"
	default:
		return "table " + c.Family + " " + c.Table
	}
}

// letsThrough reports whether a rule in the chain, or in Docker's place for
// other people's rules, accepts Lodge's interfaces by name.
func (r ruleset) letsThrough(c chain, bridges []string) bool {
	known := func(iface string) bool {
		prefix, wild := strings.CutSuffix(iface, "*")
		if len(bridges) == 0 {
			return strings.HasPrefix(iface, "lg")
		}
		return slices.ContainsFunc(bridges, func(b string) bool { return b == iface || wild && strings.HasPrefix(b, prefix) })
	}
	user := chain{Family: c.Family, Table: c.Table, Name: "DOCKER-USER"}
	return slices.ContainsFunc(r.accepts[c.key()], known) || slices.ContainsFunc(r.accepts[user.key()], known)
}

// judgeFirewall names the chains that drop guests' packets. In nftables an
// accept in one table does not help against a drop in another.
func judgeFirewall(r ruleset, bridges []string) verdict {
	var bad, fixes []string
	for _, c := range r.forward {
		if strings.HasPrefix(c.Table, "lodge") || c.Policy != "drop" && !c.Rejects || r.letsThrough(c, bridges) {
			continue
		}
		who := r.owner(c)
		bad = append(bad, fmt.Sprintf("%s: chain %s of table %s %s", who, c.Name, c.Family, c.Table))
		if fix := firewallFix(who, c, bridges); !slices.Contains(fixes, fix) {
			fixes = append(fixes, fix)
		}
	}
	if len(bad) == 0 {
		return good("none drops guests' packets")
	}
	return verdict{state: Fault, found: strings.Join(bad, "; "), cause: "it drops forwarded packets that it does not know: guests cannot reach other networks",
		fix: strings.Join(fixes, " && ")}
}

func firewallFix(who string, c chain, bridges []string) string {
	iface := "lg*"
	if len(bridges) > 0 {
		iface = bridges[0]
	}
	switch who {
	case "ufw":
		return "ufw route allow in on " + strings.Replace(iface, "*", "+", 1)
	case "firewalld":
		return "firewall-cmd --permanent --zone=trusted --add-interface=" + strings.Replace(iface, "*", "+", 1) + " && firewall-cmd --reload"
	case "docker":
		c.Name = "DOCKER-USER"
	}
	insert := "nft insert rule " + c.Family + " " + c.Table + " " + c.Name
	return fmt.Sprintf(`%s oifname '"%s"' ct state established,related accept && %s iifname '"%s"' accept`, insert, iface, insert, iface)
}
