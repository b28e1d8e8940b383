package uml

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"strings"
	"time"
)

// spacePace bounds what a kernel that is not what it should be can cost.
const spacePace = 200 * time.Millisecond

// followSpace listens to the library between the guest's kernel and the host,
// which tells when the host has no space for a disk and when it has, until the
// guest ends. What the library told while no daemon ran has waited.
func (l *line) followSpace(from *os.File, changed func()) {
	go func() {
		<-l.Done()
		from.Close()
	}()
	// What was told before the last does not count any more.
	told := make([]byte, 4<<10)
	for {
		n, err := from.Read(told)
		if err != nil {
			return
		}
		now := ""
		if last := told[max(0, n-4):n]; len(last) == 4 {
			if fd := int32(binary.NativeEndian.Uint32(last)); fd >= 0 {
				now = l.diskOf(fd)
			}
		}
		l.mu.Lock()
		was := l.full
		l.full = now
		l.mu.Unlock()
		if now != was {
			changed()
		}
		time.Sleep(spacePace)
	}
}

// diskOf is the name of the disk that the guest's kernel has open there.
func (l *line) diskOf(fd int32) string {
	to, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", l.pid, fd))
	if name, ok := strings.CutPrefix(to, placesAt+"/"); ok && err == nil && name != "" {
		return path.Base(name)
	}
	return "root"
}
