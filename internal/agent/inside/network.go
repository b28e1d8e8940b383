package inside

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"lodge/internal/agent"
)

// cardTime is how long a network card may take to appear.
const cardTime = 30 * time.Second

// configureNetwork gives the guest's cards, known by their hardware addresses,
// their names and addresses. Others are left alone.
func configureNetwork(nics []agent.NIC) error {
	w, err := openWire()
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.up("lo"); err != nil {
		return fmt.Errorf("the loopback: %w", err)
	}
	found, err := cards(nics)
	if err != nil {
		return err
	}
	if err := w.rename(nics, found); err != nil {
		return err
	}
	via := map[bool]bool{} // families that have a default route
	for i, n := range nics {
		if err := w.configure(n, found[i], via); err != nil {
			return fmt.Errorf("network card %s: %w", n.Name, err)
		}
	}
	return nil
}

// cards waits for all cards and returns their numbers.
func cards(nics []agent.NIC) ([]int, error) {
	end := time.Now().Add(cardTime)
	out := make([]int, len(nics))
	for i, n := range nics {
		if _, err := parseMAC(n.MAC); err != nil {
			return nil, fmt.Errorf("network card %s: %w", n.Name, err)
		}
		for out[i] == 0 {
			for _, card := range allCards() {
				if strings.EqualFold(card.mac, n.MAC) {
					out[i] = card.index
				}
			}
			if out[i] == 0 && time.Now().After(end) {
				return nil, fmt.Errorf("network card %s: none with the address %s appeared", n.Name, n.MAC)
			}
			if out[i] == 0 {
				time.Sleep(5 * time.Millisecond)
			}
		}
	}
	return out, nil
}

// card is a network card as the kernel has it.
type card struct {
	name  string
	index int
	mac   string
}

const cardFolder = "/sys/class/net/"

func allCards() []card {
	found, _ := os.ReadDir(cardFolder)
	var out []card
	for _, f := range found {
		if c, err := cardNamed(f.Name()); err == nil {
			out = append(out, c)
		}
	}
	return out
}

func cardNamed(name string) (card, error) {
	c := card{name: name, mac: strings.TrimSpace(read(cardFolder + name + "/address"))}
	c.index = int(number(strings.TrimSpace(read(cardFolder + name + "/ifindex"))))
	if c.index == 0 {
		return c, fmt.Errorf("there is no network card %s", name)
	}
	return c, nil
}

// parseMAC reads a hardware address of six bytes.
func parseMAC(s string) ([]byte, error) {
	mac, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || len(mac) != 6 || len(s) != 17 {
		return nil, fmt.Errorf("%q is no hardware address", s)
	}
	return mac, nil
}

// rename gives the cards their names, by way of others: two may have each
// other's.
func (w *wire) rename(nics []agent.NIC, found []int) error {
	names := map[int]string{}
	for _, c := range allCards() {
		names[c.index] = c.name
	}
	var wrong []int
	for i, n := range nics {
		if names[found[i]] == n.Name {
			continue
		}
		if err := w.set(found[i], 0, unix.IFF_UP, fmt.Sprintf("lodge-%d", i)); err != nil {
			return fmt.Errorf("network card %s cannot be renamed: %w", names[found[i]], err)
		}
		wrong = append(wrong, i)
	}
	for _, i := range wrong {
		if err := w.set(found[i], 0, unix.IFF_UP, nics[i].Name); err != nil {
			return fmt.Errorf("network card %s cannot have its name: %w", nics[i].Name, err)
		}
	}
	return nil
}

// configure makes a card ready; via tells which families have a default route.
func (w *wire) configure(n agent.NIC, index int, via map[bool]bool) error {
	if err := w.prepare(n, index); err != nil {
		return err
	}
	return w.furnish(n, index, via)
}

// prepare makes a card one that can have addresses.
func (w *wire) prepare(n agent.NIC, index int) error {
	conf := "/proc/sys/net/ipv6/conf/" + n.Name + "/"
	_ = os.WriteFile(conf+"accept_ra", []byte("0"), 0)
	// Addresses are unique by allocation: nobody waits for duplicates to answer.
	_ = os.WriteFile(conf+"accept_dad", []byte("0"), 0)
	if n.MTU > 0 {
		m := newMessage(unix.RTM_NEWLINK, 0, ifinfo(index, 0, 0))
		m.number(unix.IFLA_MTU, uint32(n.MTU))
		if err := w.ask(m); err != nil {
			return fmt.Errorf("MTU %d: %w", n.MTU, err)
		}
	}
	return w.set(index, unix.IFF_UP, unix.IFF_UP, "")
}

// furnish gives a card its addresses and routes.
func (w *wire) furnish(n agent.NIC, index int, via map[bool]bool) error {
	for _, p := range n.Prefixes {
		a, err := netip.ParsePrefix(p)
		if err != nil {
			return err
		}
		if err := w.address(index, a); err != nil && !missing6(a.Addr(), err) {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	for _, g := range n.Gateways {
		a, err := netip.ParseAddr(g)
		if err != nil {
			return err
		}
		if via[a.Is6()] {
			continue
		}
		via[a.Is6()] = true
		if err := w.gateway(index, a); err != nil && !missing6(a, err) {
			return fmt.Errorf("route by %s: %w", g, err)
		}
	}
	return nil
}

// missing6 reports whether err says that this kernel has no IPv6: the guest
// does without.
func missing6(a netip.Addr, err error) bool {
	_, have := os.Stat("/proc/sys/net/ipv6")
	return a.Is6() && have != nil && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL))
}
