package bridge_test

import (
	"os/exec"
	"strings"
	"testing"
)

// nft loads rules as another program would.
func nft(t *testing.T, text string) {
	t.Helper()
	c := exec.Command("nft", "-f", "-")
	c.Stdin = strings.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("nft: %v\n%s", err, out)
	}
}

// Rules as Docker and ufw leave them with iptables-nft.
const (
	docker = `
table ip filter {
	chain DOCKER-USER { counter return; }
	chain FORWARD { type filter hook forward priority filter; policy drop; counter jump DOCKER-USER; }
}
table ip6 filter {
	chain DOCKER-USER { counter return; }
	chain FORWARD { type filter hook forward priority filter; policy drop; counter jump DOCKER-USER; }
}`
	ufw = `
table ip filter {
	chain ufw-before-forward { ct state related,established accept; }
	chain ufw-before-input { iifname "lo" accept; ct state related,established accept; }
	chain FORWARD { type filter hook forward priority filter; policy drop; counter jump ufw-before-forward; }
	chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw-before-input; }
}
table ip6 filter {
	chain ufw-before-forward { ct state related,established accept; }
	chain ufw-before-input { iifname "lo" accept; ct state related,established accept; icmpv6 type { 133-136 } accept; }
	chain FORWARD { type filter hook forward priority filter; policy drop; counter jump ufw-before-forward; }
	chain INPUT { type filter hook input priority filter; policy drop; counter jump ufw-before-input; }
}`
)

func TestBesideOtherFirewalls(t *testing.T) {
	for who, rules := range map[string]string{"docker": docker, "ufw": ufw} {
		t.Run(who, func(t *testing.T) {
			ruleset(t) // skips where there is no namespace
			nft(t, rules)
			t.Cleanup(func() { nft(t, "delete table ip filter; delete table ip6 filter") })
			theirs := counted(ruleset(t))
			d := open(t, book{})
			f := ensure(t, d, "default", spec())
			out := outside(t)
			out.Greet(t, internet4, internet6)
			a, b := guest(t, f, spec(), 2), guest(t, f, spec(), 3)
			b.Greet(t)
			for _, to := range []string{internet4, internet6, b.Port.IPv4.String(), b.Port.IPv6.String()} {
				if _, err := a.Ask("tcp", at(to, 7)); err != nil {
					t.Errorf("to %s: %v", to, err)
				}
			}
			for _, server := range []string{"10.77.0.1", "fd77::1"} {
				for _, proto := range []string{"udp", "tcp"} {
					if got, err := ask(a.Space, proto, server, "nobody.lodge.internal.", 1); err != nil || got != "NXDOMAIN SOA" {
						t.Errorf("names by %s at %s: %q, %v", proto, server, got, err)
					}
				}
			}
			have := ruleset(t)
			if _, err := d.Ensure(t.Context(), "default", spec()); err != nil {
				t.Fatal(err)
			}
			if again := ruleset(t); counted(again) != counted(have) {
				t.Errorf("ensured again, rules changed:\n%s\nfrom\n%s", again, have)
			}
			holds(t, client(t, blank(t, f, 4), "busybox", ask4...), "ACTION=bound", "ip=10.77.0.4")
			if list, err := d.Obstacles(); err != nil || len(list) != 0 {
				t.Errorf("obstacles: %v, %v", list, err)
			}
			if err := d.Remove(t.Context(), "default"); err != nil {
				t.Fatal(err)
			}
			if now := counted(ruleset(t)); now != theirs {
				t.Errorf("before:\n%s\nafter:\n%s", theirs, now)
			}
		})
	}
}

// counted takes the counters' values out: only the rules are compared.
func counted(rules string) string {
	var out []string
	for f := strings.Fields(rules); len(f) > 0; f = f[1:] {
		if f[0] == "packets" || f[0] == "bytes" {
			f = f[1:]
			continue
		}
		out = append(out, f[0])
	}
	return strings.Join(out, " ")
}

func TestObstaclesAreTold(t *testing.T) {
	ruleset(t)
	nft(t, "table inet strict { chain through { type filter hook forward priority 10; policy drop; }; }")
	t.Cleanup(func() { nft(t, "delete table inet strict") })
	list, err := open(t, nil).Obstacles()
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Message, "strict") || list[0].Hint == "" {
		t.Errorf("%+v, %v", list, err)
	}
}
