package account

import (
	"slices"
	"strings"
	"testing"

	"lodge/internal/base/errs"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1000:Ann:/home/ann:/bin/sh\nodd:x:1:1::relative:\nbroken\n2000:x:77:77::/n:/bin/sh\n"
	group  = "root:x:0:\naudio:x:29:ann,bob\nbad:x:y:ann\n"
)

func TestLookup(t *testing.T) {
	for who, want := range map[string]Account{
		"":          {Name: "root", Groups: []uint32{0}, Home: "/root", Shell: "/bin/sh"},
		"ann":       {Name: "ann", UID: 1000, GID: 1000, Groups: []uint32{1000, 29}, Home: "/home/ann", Shell: "/bin/sh"},
		"1000":      {Name: "ann", UID: 1000, GID: 1000, Groups: []uint32{1000, 29}, Home: "/home/ann", Shell: "/bin/sh"},
		"ann:audio": {Name: "ann", UID: 1000, GID: 29, Home: "/home/ann", Shell: "/bin/sh"},
		"ann:7":     {Name: "ann", UID: 1000, GID: 7, Home: "/home/ann", Shell: "/bin/sh"},
		"odd":       {Name: "odd", UID: 1, GID: 1, Groups: []uint32{1}, Home: "/", Shell: "/bin/sh"},
		"2000":      {Name: "2000", UID: 77, GID: 77, Groups: []uint32{77}, Home: "/n", Shell: "/bin/sh"},
		"4242":      {Name: "4242", UID: 4242, Home: "/", Shell: "/bin/sh"},
	} {
		got, err := Lookup(who, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil || got.Name != want.Name || got.UID != want.UID || got.GID != want.GID || got.Home != want.Home || got.Shell != want.Shell || !slices.Equal(got.Groups, want.Groups) {
			t.Errorf("%q: %+v %v", who, got, err)
		}
	}
	for _, who := range []string{"nobody-here", "ann:no-group", "70000", "-1"} {
		if _, err := Lookup(who, strings.NewReader(passwd), strings.NewReader(group)); !errs.Is(err, errs.NotFound) {
			t.Errorf("%q: %v", who, err)
		}
	}
}
