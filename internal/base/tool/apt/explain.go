package apt

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"lodge/internal/base/errs"
)

// Keyring holds the keys that Debian signs its archive with.
const Keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Check says Unsupported if packages of a codename cannot be had on this host,
// whose configuration of apt is in etcApt.
func Check(etcApt, codename string) error {
	if _, err := os.Stat(Keyring); err != nil {
		return &errs.Error{
			Kind: errs.Unsupported, Msg: "this host lacks Debian's keys", Err: err,
			Hint: "apt-get install debian-archive-keyring",
		}
	}
	if Mirrors(etcApt, codename) == nil {
		return &errs.Error{
			Kind: errs.Unsupported, Msg: "apt on this host knows no mirror of Debian",
			Hint: fmt.Sprintf("name one in %s/sources.list.d/debian.list: deb URL bookworm main", etcApt),
		}
	}
	return nil
}

// Explain gives a failure of op the words and the kind of what apt said was wrong.
func Explain(op string, err error, troubles []string) error {
	said := strings.Join(troubles, "; ")
	e := &errs.Error{Op: op, Kind: errs.Internal, Err: err}
	has := func(signs ...string) bool {
		return slices.ContainsFunc(signs, func(s string) bool { return strings.Contains(said, s) })
	}
	switch {
	case has("No space left on device", "don't have enough free space"):
		e.Kind, e.Msg, e.Hint = errs.NoSpace, "the disk is full", "free some space on the disk of the data directory, then build it again"
	case has("Could not resolve", "Temporary failure", "Could not connect", "Connection failed", "Unable to connect",
		"Connection timed out", "Cannot initiate the connection", "Failed to fetch", "did not find any indices"):
		e.Kind, e.Msg = errs.Unavailable, "the Debian mirror does not give what is needed: "+said
		e.Hint = "check the network and the mirror in /etc/apt; what was fetched is kept"
	case has("NO_PUBKEY", "not signed", "signatures couldn't be verified", "signatures were invalid"):
		e.Kind, e.Msg = errs.Denied, "the mirror's signature can't be verified: "+said
		e.Hint = "apt-get install debian-archive-keyring, or upgrade it"
	default:
		return err
	}
	return e
}
