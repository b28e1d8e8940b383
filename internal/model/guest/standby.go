package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
)

// MACOf derives the address of a guest's nth card from the guest's id: unicast,
// locally administered, the same whenever it is asked for.
func MACOf(id string, card int) string {
	sum := sha256.Sum256([]byte(id + "/" + strconv.Itoa(card)))
	return fmt.Sprintf("02:%02x:%02x:%02x:%02x:%02x", sum[0], sum[1], sum[2], sum[3], sum[4])
}

// StandbyKind names all that a guest about to be made must have in common with
// one that already runs to be that one: what a machine is made of and cannot
// change while it runs. It is "" for a guest that has to boot, since it does
// something once when it first does, or has devices of its own. networks are
// those of its cards.
func (s Spec) StandbyKind(networks []string) string {
	if s.Power != On || s.Boots != 1 || s.Clone != nil || s.Restore != nil ||
		len(s.Command) > 0 || len(s.Env) > 0 || s.UserData != "" || len(s.Disks) > 0 {
		return ""
	}
	text, err := json.Marshal([]any{s.Model, s.Engine, s.Digest, s.CPUs, s.Memory, s.Disk, s.Pool, s.Hardware, networks})
	if err != nil {
		panic(err) // plain values only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:12])
}

// Networks are those of the guest's cards, in their order.
func (s Spec) Networks() (names []string) {
	for _, n := range s.NICs {
		names = append(names, n.Network)
	}
	return names
}

// standbyWeight keeps what nobody waits for behind what somebody does.
const standbyWeight = 10

// Standby returns what a guest like s is asked to be that stands ready under an
// id: the same machine, without anything that is somebody's.
func (s Spec) Standby(id string) Spec {
	own := Spec{
		Model: s.Model, Engine: s.Engine, Image: s.Image, Digest: s.Digest, Power: On, Boots: 1,
		CPUs: s.CPUs, CPUWeight: standbyWeight, Memory: s.Memory, Processes: s.Processes, Pool: s.Pool, Disk: s.Disk, Hardware: s.Hardware, Restart: Never,
	}
	for i, network := range s.Networks() {
		own.NICs = append(own.NICs, NIC{Name: NICName(i), Network: network, MAC: MACOf(id, i)})
	}
	return own
}
