package doctor

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// adviceHelps runs in a network namespace of its own.
func adviceHelps(t *testing.T) error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return err
	}
	load := exec.Command(nft, "-f", "-")
	load.Stdin = strings.NewReader(`table ip filter {
		chain DOCKER-USER { }
		chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; }
	}`)
	if out, err := load.CombinedOutput(); err != nil {
		return fmt.Errorf("nft cannot be used here: %s", out)
	}
	judge := func() verdict {
		text, err := readRuleset(t.Context())
		if err != nil {
			t.Error(err)
		}
		r, err := parseRuleset(text)
		if err != nil {
			t.Error(err)
		}
		return judgeFirewall(r, nil)
	}
	v := judge()
	if v.state != Fault || !strings.Contains(v.found, "docker") {
		t.Errorf("with Docker's rules: %+v", v)
	}
	if out, err := exec.Command("/bin/sh", "-c", v.fix).CombinedOutput(); err != nil {
		t.Errorf("the advice %q fails: %s", v.fix, out)
	}
	if v := judge(); v.state != OK {
		t.Errorf("after following the advice: %+v", v)
	}
	return nil
}
