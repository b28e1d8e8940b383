package agent

import (
	"encoding/binary"
	"fmt"
	"io"

	"lodge/internal/base/errs"
)

// On a stream, the host sends a request and the agent answers with a result;
// what else runs there before and after is of the kinds below.

// Kind is what a frame of a stream is.
type Kind byte

// The kinds of frames.
const (
	KindRequest Kind = 'q' // Request; the first of every stream
	KindResult  Kind = 'r' // Result
	KindIn      Kind = 'i' // to the program's input, or the file that is sent; empty: its end
	KindOut     Kind = 'o' // of the program's output, or the file that is fetched; empty: its end
	KindErr     Kind = 'e' // of the program's errors; empty: their end
	KindTaken   Kind = 't' // kind and number of bytes that the receiver took and will take more of
	KindSignal  Kind = 's' // number
	KindSize    Kind = 'w' // rows and columns
	KindExit    Kind = 'x' // status of the program
	KindSlot    Kind = 'm' // number of a slot of the mailbox, and bytes that it holds
	KindFree    Kind = 'f' // number of a slot that was emptied
	KindPages   Kind = 'p' // numbers of pages of the guest's memory that it does not use; without any: the host has taken those
)

// Bounds of what the ends take from each other.
const (
	RequestMax = 512 << 10 // bytes of a request or result
	ChunkMax   = 32 << 10  // bytes of any other frame
	ExecWindow = 64 << 10  // bytes of a program's stream on their way, not taken
)

const frameHead = 5

// AppendFrame writes a frame.
func AppendFrame(b []byte, k Kind, payload []byte) []byte {
	b = append(b, byte(k))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// WriteFrame writes a frame at once.
func WriteFrame(w io.Writer, k Kind, payload []byte) error {
	_, err := w.Write(AppendFrame(make([]byte, 0, frameHead+len(payload)), k, payload))
	return err
}

// WriteNumbers writes a frame of numbers.
func WriteNumbers(w io.Writer, k Kind, numbers ...uint32) error {
	var b []byte
	for _, n := range numbers {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	return WriteFrame(w, k, b)
}

// Numbers reads the payload of such a frame, which must hold n of them.
func Numbers(payload []byte, n int) ([]uint32, error) {
	if len(payload) != 4*n {
		return nil, fmt.Errorf("%d bytes stand where %d numbers should", len(payload), n)
	}
	out := make([]uint32, n)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(payload[4*i:])
	}
	return out, nil
}

// Frames reads frames. Nothing is allocated for what did not arrive.
type Frames struct {
	r   io.Reader
	buf []byte
}

// NewFrames reads from r.
func NewFrames(r io.Reader) *Frames { return &Frames{r: r} }

// Next returns a frame; its payload is valid until the next call.
func (f *Frames) Next() (Kind, []byte, error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(f.r, head[:]); err != nil {
		return 0, nil, err
	}
	k, n := Kind(head[0]), binary.LittleEndian.Uint32(head[1:])
	limit := uint32(ChunkMax)
	if k == KindRequest || k == KindResult {
		limit = RequestMax
	}
	if n > limit {
		return 0, nil, fmt.Errorf("a frame of kind %q has %d bytes", k, n)
	}
	f.buf = f.buf[:0]
	for len(f.buf) < int(n) {
		have := len(f.buf)
		more := min(int(n)-have, ChunkMax)
		f.buf = append(f.buf, make([]byte, more)...)
		if _, err := io.ReadFull(f.r, f.buf[have:]); err != nil {
			return 0, nil, noEOF(err)
		}
	}
	return k, f.buf, nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Op is what a request asks for.
type Op string

// The requests.
const (
	OpWatch    Op = "watch"    // results with State, one for each change, without end
	OpExec     Op = "exec"     // Exec, Slots for its input; result, then frames until both ends closed
	OpPack     Op = "pack"     // Path, Slots; data, then the result
	OpUnpack   Op = "unpack"   // Path, Slots; takes data, then the result
	OpStats    Op = "stats"    // result with Stats
	OpShutdown Op = "shutdown" // result once the guest's init was asked
	OpReboot   Op = "reboot"   // likewise
	OpFreeze   Op = "freeze"   // Seconds; result once nothing writes, until the stream closes or they passed
	OpRenew    Op = "renew"    // Config, Served; the result has Kinds
	OpServe    Op = "serve"    // HostKeys, of the kinds that renew told
	OpOnline   Op = "online"   // use processors and memory that were plugged, and no more processors than Request.CPUs
	OpGrow     Op = "grow"     // the volume, to the size of its device
	OpTrim     Op = "trim"     // result with Bytes
	OpClock    Op = "clock"    // Time
	OpPassword Op = "password" // User, Hash
	OpHold     Op = "hold"     // Bytes of memory to keep from the guest's programs; pages that the host may take, then the result with Bytes
	OpKeys     Op = "keys"     // User, Keys: those who have them may log in
	OpSqueeze  Op = "squeeze"  // pages that the host may take, which the guest can use again at once; then the result
)

// Request is what the host asks.
type Request struct {
	Op      Op       `json:"op"`
	Exec    *Exec    `json:"exec,omitempty"`
	Path    string   `json:"path,omitempty"`
	Slots   []int    `json:"slots,omitempty"` // of the mailbox that are this request's
	Seconds float64  `json:"seconds,omitempty"`
	Config  *Config  `json:"config,omitempty"`
	Time    int64    `json:"time,omitempty"` // nanoseconds since 1970
	CPUs    int      `json:"cpus,omitempty"` // how many processors to use; 0: all
	User    string   `json:"user,omitempty"`
	Hash    string   `json:"hash,omitempty"`    // as in /etc/shadow
	Keys    []string `json:"keys,omitempty"`    // as in authorized_keys
	Entropy string   `json:"entropy,omitempty"` // hexadecimal digits
	Bytes   uint64   `json:"bytes,omitempty"`
	// Served says that the host makes the keys which the guest's server of the
	// secure shell is to show.
	Served   bool      `json:"served,omitempty"`
	HostKeys []HostKey `json:"host_keys,omitempty"`
}

// HostKeysMax is how many kinds of keys a guest is given at most.
const HostKeysMax = 8

// HostKey is what the files of a key hold.
type HostKey struct {
	Kind   string `json:"kind"` // "ed25519"
	Secret string `json:"secret"`
	Public string `json:"public"`
}

// Exec is a program to run, with the meaning of session.Request.
type Exec struct {
	Argv []string `json:"argv"`
	Env  []string `json:"env,omitempty"`
	Dir  string   `json:"dir,omitempty"`
	User string   `json:"user,omitempty"`
	TTY  bool     `json:"tty,omitempty"`
	Rows uint16   `json:"rows,omitempty"`
	Cols uint16   `json:"cols,omitempty"`
	In   bool     `json:"in,omitempty"` // somebody has input for it
}

// Result is how the agent answers.
type Result struct {
	Error *Problem `json:"error,omitempty"`
	State *State   `json:"state,omitempty"`
	Stats *Stats   `json:"stats,omitempty"`
	Bytes uint64   `json:"bytes,omitempty"`
	Kinds []string `json:"kinds,omitempty"` // of keys that were taken away and are to come from the host
}

// Problem is an error on its way.
type Problem struct {
	Kind  string `json:"kind"`
	Field string `json:"field,omitempty"`
	Msg   string `json:"msg"`
	Hint  string `json:"hint,omitempty"`
}

// problemMax bounds each word that the host takes over from a guest.
const problemMax = 4096

// ProblemOf makes an error fit for the way; nil stays nil.
func ProblemOf(err error) *Problem {
	if err == nil {
		return nil
	}
	p := &Problem{Kind: errs.KindOf(err).String(), Msg: err.Error()}
	if e, ok := err.(*errs.Error); ok {
		p.Field, p.Hint, p.Msg = e.Field, e.Hint, e.Msg
	}
	return p
}

// Err is the error that was sent.
func (p *Problem) Err() error {
	if p == nil {
		return nil
	}
	e := &errs.Error{Op: "agent", Kind: errs.ParseKind(p.Kind), Field: cut(p.Field), Msg: cut(p.Msg), Hint: cut(p.Hint)}
	if e.Kind == errs.Internal {
		e.Err = fmt.Errorf("the guest's agent: %s", e.Msg)
	}
	return e
}

func cut(s string) string { return s[:min(len(s), problemMax)] }

// State is what the host is told without asking again.
type State struct {
	Ready     bool     `json:"ready"`               // the guest's init says that it is up
	Addresses []string `json:"addresses,omitempty"` // with prefix lengths, without those of the loopback
}

// Stats is what a guest says of itself.
type Stats struct {
	CPUs           int        `json:"cpus"`
	Uptime         float64    `json:"uptime"` // seconds
	Load           [3]float64 `json:"load"`
	Processes      int64      `json:"processes"`
	MemoryTotal    uint64     `json:"memory_total"`
	MemoryFree     uint64     `json:"memory_free"`
	MemoryUsable   uint64     `json:"memory_usable"` // as the kernel estimates it
	MemoryCache    uint64     `json:"memory_cache"`
	SwapTotal      uint64     `json:"swap_total"`
	SwapFree       uint64     `json:"swap_free"`
	DiskTotal      uint64     `json:"disk_total"` // of the file system at /
	DiskFree       uint64     `json:"disk_free"`
	OOMKills       uint64     `json:"oom_kills"`
	CPUSeconds     float64    `json:"cpu_seconds"`
	RxBytes        uint64     `json:"rx_bytes"`
	TxBytes        uint64     `json:"tx_bytes"`
	RxPackets      uint64     `json:"rx_packets"`
	TxPackets      uint64     `json:"tx_packets"`
	DiskReadBytes  uint64     `json:"disk_read_bytes"`
	DiskWriteBytes uint64     `json:"disk_write_bytes"`
}

// SendJSON writes v as a frame of kind k.
func SendJSON(w io.Writer, k Kind, v any) error {
	b, err := Encode(v)
	if err != nil {
		return err
	}
	if len(b) > RequestMax {
		return errs.Bad("", fmt.Sprintf("the request has %d bytes; %d are the most", len(b), RequestMax), "give long input on the program's standard input")
	}
	return WriteFrame(w, k, b)
}

// ParseRequest reads what the host asks.
func ParseRequest(b []byte) (Request, error) {
	var r Request
	err := Decode(b, &r)
	return r, err
}

// ParseResult reads what the agent answers.
func ParseResult(b []byte) (Result, error) {
	var r Result
	err := Decode(b, &r)
	return r, err
}
