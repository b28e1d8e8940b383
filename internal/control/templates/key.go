package templates

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"

	"lodge/internal/engine"
	"lodge/internal/model/guest"
)

// fits reports whether guests as g may start from a template: what is carried
// out once at the first boot, or needs devices of its own, cannot.
func fits(g guest.Guest, info engine.Info) bool {
	s := g.Spec
	return info.Can.Save && info.Can.Renew && info.Can.Pause && info.Form == guest.Volume &&
		len(s.Command) == 0 && len(s.Env) == 0 && s.UserData == "" && len(s.Disks) == 0
}

// keyOf names the template that serves g: all that a machine's state depends
// on goes into it, so that another image, kernel, agent, monitor or size is
// another template.
func keyOf(g guest.Guest, info engine.Info, parts engine.Parts) string {
	var mtu []int
	for _, n := range parts.NICs {
		mtu = append(mtu, n.MTU)
	}
	text, err := json.Marshal([]any{
		info.Name, info.Version, acceleration(info), g.Spec.Digest, g.Spec.Memory, g.Spec.CPUs, g.Spec.Disk, g.Spec.Hardware,
		parts.Kernel.Name, parts.Kernel.Version, parts.Kernel.Initrd, mtu,
	})
	if err != nil {
		panic(err) // plain values only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12])
}

// acceleration is the word that says what runs the guest's instructions; what
// follows it may differ from one look to the next.
func acceleration(info engine.Info) string {
	for _, f := range info.Facts {
		if f.Name == "acceleration" {
			word, _, _ := strings.Cut(f.Value, ":")
			return word
		}
	}
	return ""
}
