package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"regexp"

	"golang.org/x/sys/unix"

	"lodge/internal/base/errs"
	"lodge/internal/base/ids"
	"lodge/internal/engine/qemu/qmp"
)

// screenMax is the largest picture of a screen that is read, in bytes: four
// times what the largest mode of the card takes.
const screenMax = 64 << 20

// Screenshot writes the guest's screen as a PNG file.
func (m *Machine) Screenshot(ctx context.Context, w io.Writer) error {
	if m.headless() {
		return &errs.Error{Op: "qemu.screenshot", Kind: errs.Unsupported, Ref: m.g.Key().String(), Msg: "a microvm has no screen", Hint: "use lodge console"}
	}
	fd, err := unix.MemfdCreate("screen", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "screen")
	defer f.Close()
	// QEMU takes a file that can be written to and not read.
	into, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer into.Close()
	if err := m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error { return dump(ctx, c, into) }); err != nil {
		return m.about(err)
	}
	if info, err := f.Stat(); err != nil || info.Size() > screenMax {
		return fmt.Errorf("the picture of the screen of %s is of no sensible size: %v", m.g.Name, err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	text, err := io.ReadAll(io.LimitReader(f, screenMax))
	if err != nil {
		return err
	}
	picture, err := parsePPM(text)
	if err != nil {
		return fmt.Errorf("the screen of %s: %w", m.g.Name, err)
	}
	return png.Encode(w, picture)
}

// headless reports whether the guest has no screen.
func (m *Machine) headless() bool { return m.g.Spec.Hardware.Machine == "microvm" }

// dump has QEMU write the screen into f. All versions can write PPM.
func dump(ctx context.Context, c *qmp.Client, f *os.File) error {
	set, err := c.AddFile(ctx, "screen", f)
	if err != nil {
		return err
	}
	err = c.Do(ctx, "screendump", map[string]any{"filename": fmt.Sprintf("/dev/fdset/%d", set)}, nil)
	if e := c.Do(ctx, "remove-fd", map[string]any{"fdset-id": set}, nil); err == nil {
		err = e
	}
	return err
}

// sideMax bounds a screen's width and height.
const sideMax = 16384

// parsePPM reads a binary portable pixmap of one byte a colour.
func parsePPM(text []byte) (image.Image, error) {
	var width, height, most int
	r := bytes.NewReader(text)
	if n, err := fmt.Fscanf(r, "P6\n%d %d\n%d\n", &width, &height, &most); n != 3 || err != nil {
		return nil, fmt.Errorf("it is no picture: %w", err)
	}
	if width <= 0 || height <= 0 || width > sideMax || height > sideMax || most != 255 {
		return nil, fmt.Errorf("a picture of %d by %d, in %d steps, is none", width, height, most)
	}
	pixels := text[len(text)-r.Len():]
	if len(pixels) < 3*width*height {
		return nil, io.ErrUnexpectedEOF
	}
	p := image.NewNRGBA(image.Rect(0, 0, width, height))
	for i := range width * height {
		p.SetNRGBA(i%width, i/width, color.NRGBA{pixels[3*i], pixels[3*i+1], pixels[3*i+2], 255})
	}
	return p, nil
}

// keyName is how QEMU names keys: "ctrl", "f1", "kp_enter".
var keyName = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)

// keysMax is how many keys can be pressed together.
const keysMax = 8

// SendKeys presses keys together and lets them go.
func (m *Machine) SendKeys(ctx context.Context, keys []string) error {
	if len(keys) == 0 || len(keys) > keysMax {
		return errs.Bad("keys", fmt.Sprintf("%d keys cannot be pressed together", len(keys)), fmt.Sprintf("name 1 to %d keys", keysMax))
	}
	type key struct {
		Type string `json:"type"`
		Data string `json:"data"`
	}
	var press []key
	for _, k := range keys {
		if !keyName.MatchString(k) {
			return errs.Bad("keys", fmt.Sprintf("%q is not the name of a key", k), "such names are ctrl, alt, delete, ret, f1, a")
		}
		press = append(press, key{"qcode", k})
	}
	err := m.link.do(ctx, "send-key", map[string]any{"keys": press}, nil)
	if refused, ok := errors.AsType[*qmp.Error](err); ok {
		return errs.Bad("keys", refused.Desc, "such names are ctrl, alt, delete, ret, f1, a")
	}
	return m.about(err)
}

// Display connects to the guest's screen by the RFB protocol. Nothing listens:
// QEMU is handed one end of a socket pair.
func (m *Machine) Display(ctx context.Context) (io.ReadWriteCloser, error) {
	if m.headless() {
		return nil, &errs.Error{Op: "qemu.display", Kind: errs.Unsupported, Ref: m.g.Key().String(), Msg: "a microvm has no screen", Hint: "use lodge console"}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "display"), os.NewFile(uintptr(pair[1]), "display of QEMU")
	defer ours.Close()
	defer theirs.Close()
	name := "display-" + ids.New()
	err = m.link.with(ctx, func(ctx context.Context, c *qmp.Client) error {
		if err := c.PassFile(ctx, name, theirs); err != nil {
			return err
		}
		return c.Do(ctx, "add_client", map[string]any{"protocol": "vnc", "fdname": name, "skipauth": true}, nil)
	})
	if err != nil {
		return nil, m.about(err)
	}
	return net.FileConn(ours)
}
