package blockdev

import (
	"strings"
	"testing"
)

const table = `22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:26 / /var/lib/with\040space rw - btrfs /dev/loop3 rw
31 22 0:27 / /var/lib rw - tmpfs tmpfs rw
garbage
`

func TestSourceOf(t *testing.T) {
	for path, want := range map[string]string{
		"/home":                     "/dev/vda",
		"/var/lib":                  "tmpfs",
		"/var/lib/x":                "tmpfs",
		"/var/library":              "/dev/vda",
		"/var/lib/with space/guest": "/dev/loop3",
	} {
		if got := sourceOf(strings.NewReader(table), path); got != want {
			t.Errorf("source of %s is %q, want %q", path, got, want)
		}
	}
}

func TestOfRoot(t *testing.T) {
	if dev, err := Of("/"); err != nil || dev != "" && !strings.Contains(dev, ":") {
		t.Errorf("Of(/) = %q, %v", dev, err)
	}
}
