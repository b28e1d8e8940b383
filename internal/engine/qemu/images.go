package qemu

import (
	"crypto/rand"
	"fmt"
	"os"
	"sync"
	"time"
)

// images are the memory images that guests go on from here, or that were
// written or used a moment ago. Copies of an image, each in its guest's volume,
// are the same to the byte, but to the host each is a file of its own: whoever
// goes on from one is given the first that is known instead, so that all of them
// share what none of them has changed, and what is in memory already is not read
// again. An image that is not known any more is only read once more.
type images struct {
	mu sync.Mutex
	of map[string]*ramImage // by what Save called them
}

type ramImage struct {
	file *os.File
	uses int // by guests that run
	idle *time.Timer
}

// imageKept is how long an image is kept that no guest uses: longer than a
// guest takes to start that was just told of it.
const imageKept = time.Minute

// newImage is the name of an image that is about to be written.
func newImage() string { return rand.Text() }

// find returns the path by which an image can be opened for a moment, that at
// path if it is not known yet. An image without a name is what lies at path.
func (i *images) find(name, path string) (string, error) {
	if name == "" {
		return path, nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	known := i.of[name]
	if known == nil {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		known = i.add(name, f)
	}
	known.idle.Reset(imageKept)
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), known.file.Fd()), nil
}

// keep makes the image at path known, which was just written.
func (i *images) keep(name, path string) {
	if f, err := os.Open(path); err == nil { // otherwise it is read again when it is used
		i.mu.Lock()
		defer i.mu.Unlock()
		i.add(name, f)
	}
}

// add is called with mu held.
func (i *images) add(name string, f *os.File) *ramImage {
	known := &ramImage{file: f}
	known.idle = time.AfterFunc(imageKept, func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		if known.uses == 0 && i.of[name] == known {
			i.drop(name)
		}
	})
	i.of[name] = known
	return known
}

func (i *images) drop(name string) {
	i.of[name].idle.Stop()
	i.of[name].file.Close()
	delete(i.of, name)
}

// use keeps an image for as long as a guest that went on from it runs, until
// done is called.
func (i *images) use(name string) (done func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	known := i.of[name]
	if known == nil {
		return func() {}
	}
	known.uses++
	return sync.OnceFunc(func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		known.uses--
		known.idle.Reset(imageKept)
	})
}

// forget lets go of all images. Guests keep what they use.
func (i *images) forget() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for name := range i.of {
		i.drop(name)
	}
}
