package bridge

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// An accept in a table of ours does not overrule a drop in another's. Where
// the field has a place for such exceptions they are put there, marked with
// the network's note: Docker's chain DOCKER-USER, or else the chains FORWARD
// and INPUT that iptables-nft (and so ufw) made, if their policy is to drop.
// The rules are of the few forms that iptables-nft itself writes: it refuses
// to work on a table in which it finds any other.

// place is a chain and the rules that belong at its head.
type place struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

// places decides where exceptions for the network belong, given every chain of
// the host.
func places(chains []*nftables.Chain, nm names) []place {
	var out []place
	for _, fam := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		find := func(name string) *nftables.Chain {
			i := slices.IndexFunc(chains, func(c *nftables.Chain) bool {
				return c.Table.Family == fam && c.Table.Name == "filter" && c.Name == name
			})
			if i < 0 {
				return nil
			}
			return chains[i]
		}
		// br_netfilter shows these chains what is only switched on a leaf, too.
		pass := [][]expr.Any{exception(iif(nm.root)), exception(oif(nm.root)),
			exception(metaIs(expr.MetaKeyIIFNAME, []byte(nm.leaves())))}
		if c := find("DOCKER-USER"); c != nil {
			out = append(out, place{c, pass})
		} else if c := find("FORWARD"); c != nil && drops(c) {
			out = append(out, place{c, pass})
		}
		if c := find("INPUT"); c != nil && drops(c) {
			out = append(out, place{c, [][]expr.Any{
				exception(rule(iif(nm.root), portMatch("udp", 53))),
				exception(rule(iif(nm.root), portMatch("tcp", 53))),
				exception(rule(iif(nm.root), portMatch("udp", dhcp[fam])))}})
		}
	}
	return out
}

// dhcp is the port that guests ask for their addresses at.
var dhcp = map[nftables.TableFamily]uint16{nftables.TableFamilyIPv4: 67, nftables.TableFamilyIPv6: 547}

func drops(c *nftables.Chain) bool { return c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop }

func exception(match []expr.Any) []expr.Any {
	return rule(match, one(&expr.Counter{}), verdict(expr.VerdictAccept))
}

func portMatch(proto string, port uint16) []expr.Any {
	all, dst := [2]uint16{0, 0xffff}, [2]uint16{port, port}
	m := &expr.Match{Name: proto}
	number := byte(unix.IPPROTO_UDP)
	if proto == "tcp" {
		number = unix.IPPROTO_TCP
		m.Info = &xt.Tcp{SrcPorts: all, DstPorts: dst}
	} else {
		m.Info = &xt.Udp{SrcPorts: all, DstPorts: dst}
	}
	return rule(metaIs(expr.MetaKeyL4PROTO, []byte{number}), one(m))
}

// plant puts the network's exceptions where they belong. A chain that has as
// many as it should is taken to have them all, so that it may be called often.
func (c *nft) plant(nm names) error {
	c.mu.Lock()
	chains, err := c.conn.ListChains()
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("nf_tables: list chains: %w", err)
	}
	var failed []error
	for _, p := range places(chains, nm) {
		there, err := c.planted(p.chain, nm.note)
		if err != nil || len(there) == len(p.rules) {
			failed = append(failed, err)
			continue
		}
		failed = append(failed, c.batch("exception in "+p.chain.Name, func(c *nftables.Conn) error {
			for _, r := range there {
				if err := c.DelRule(r); err != nil {
					return err
				}
			}
			for _, r := range p.rules {
				c.InsertRule(&nftables.Rule{Table: p.chain.Table, Chain: p.chain, Exprs: r,
					UserData: userdata.AppendString(nil, userdata.TypeComment, nm.note)})
			}
			return nil
		}))
	}
	return errors.Join(failed...)
}

// planted lists the rules of a chain that carry the note.
func (c *nft) planted(ch *nftables.Chain, note string) ([]*nftables.Rule, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	all, err := c.conn.GetRules(ch.Table, ch)
	if errors.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("nf_tables: list rules of %s: %w", ch.Name, err)
	}
	return slices.DeleteFunc(all, func(r *nftables.Rule) bool {
		text, ok := userdata.GetString(r.UserData, userdata.TypeComment)
		return !ok || text != note
	}), nil
}

// withdraw takes the network's exceptions out of every chain they can be in.
func (c *nft) withdraw(note string) error {
	c.mu.Lock()
	chains, err := c.conn.ListChains()
	c.mu.Unlock()
	if err != nil {
		return fmt.Errorf("nf_tables: list chains: %w", err)
	}
	var failed []error
	for _, ch := range chains {
		if ch.Table.Name != "filter" || !slices.Contains([]string{"DOCKER-USER", "FORWARD", "INPUT"}, ch.Name) {
			continue
		}
		rules, err := c.planted(ch, note)
		failed = append(failed, err)
		if len(rules) == 0 {
			continue
		}
		failed = append(failed, c.batch("exception in "+ch.Name, func(c *nftables.Conn) error {
			for _, r := range rules {
				r.Table, r.Chain = ch.Table, ch
				if err := c.DelRule(r); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	return errors.Join(failed...)
}

// Obstacle is a firewall of the host that may drop guests' packets and that
// this driver does not change.
type Obstacle struct {
	Message string
	Hint    string
}

// Obstacles lists what may keep guests from the outside although the network
// is ready, for the doctor to tell.
func (d *Driver) Obstacles() ([]Obstacle, error) {
	c, err := openNFT()
	if err != nil {
		return nil, err
	}
	defer c.close()
	chains, err := c.conn.ListChains()
	if err != nil {
		return nil, fmt.Errorf("nf_tables: list chains: %w", err)
	}
	legacy, err := os.ReadFile("/proc/net/ip_tables_names")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return obstacles(chains, string(legacy), d.opt.Prefix), nil
}

func obstacles(chains []*nftables.Chain, legacy, prefix string) []Obstacle {
	var out []Obstacle
	for _, ch := range chains {
		iptables := ch.Table.Name == "filter" &&
			(ch.Table.Family == nftables.TableFamilyIPv4 || ch.Table.Family == nftables.TableFamilyIPv6)
		ours := strings.HasPrefix(ch.Table.Name, prefix+"_")
		forward := ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward && ch.Type == nftables.ChainTypeFilter
		switch {
		case ours || iptables || !forward || ch.Table.Family == nftables.TableFamilyBridge:
		case ch.Table.Name == "firewalld":
			out = append(out, Obstacle{"firewalld decides what guests may reach",
				fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s-default && firewall-cmd --reload", prefix)})
		case drops(ch):
			out = append(out, Obstacle{
				fmt.Sprintf("chain %s of nftables table %s drops forwarded packets by default", ch.Name, ch.Table.Name),
				fmt.Sprintf("let packets from and to %s* pass there", prefix)})
		}
	}
	if slices.Contains(strings.Fields(legacy), "filter") {
		out = append(out, Obstacle{"this host also has rules of the old iptables, which may drop guests' packets",
			fmt.Sprintf("iptables-legacy -I FORWARD -i %s+ -j ACCEPT; iptables-legacy -I FORWARD -o %s+ -j ACCEPT", prefix, prefix)})
	}
	return out
}
