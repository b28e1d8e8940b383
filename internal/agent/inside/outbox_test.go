package inside

import (
	"strings"
	"testing"
)

// pieces hears what is written, piece by piece.
type pieces chan string

func (p pieces) Write(b []byte) (int, error) {
	if len(b) > 0 {
		p <- string(b)
	}
	return len(b), nil
}

func TestOutbox(t *testing.T) {
	heard := make(pieces, 8)
	o := &outbox{to: heard, delay: saidLate}
	o.slow().Write([]byte("started "))
	o.slow().Write([]byte("end of output "))
	o.Write([]byte("exit"))
	if is := <-heard; is != "started end of output exit" {
		t.Errorf("the first piece is %q", is)
	}
	o.slow().Write([]byte("alone"))
	if is := <-heard; is != "alone" {
		t.Errorf("what nothing follows is %q", is)
	}
	go func() {
		for range 200 {
			o.slow().Write([]byte("s"))
			o.Write([]byte("w"))
		}
		o.Write([]byte("."))
	}()
	var all strings.Builder
	for !strings.HasSuffix(all.String(), ".") {
		all.WriteString(<-heard)
	}
	if is := all.String(); is != strings.Repeat("sw", 200)+"." {
		t.Errorf("in another order: %q", is)
	}
}
