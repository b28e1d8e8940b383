package keeper

import (
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// runMark is the attribute of a log's file that says at which byte of it the
// last program began whose output it took. It goes with the file when another
// takes its name, and outlives daemon, keeper and host.
const runMark = "user.lodge.run"

// MarkRun notes that what is written to a log's open file from now on is of
// another program than what stands in it.
func MarkRun(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return unix.Fsetxattr(int(f.Fd()), runMark, strconv.AppendInt(nil, info.Size(), 10), 0)
}

// Said returns the end of what the last program said whose console is kept in
// log, at most limit bytes, and how many of its bytes are kept. A log that does
// not say where that program began is taken for all its own.
func Said(log string, limit int64) (text []byte, length int64) {
	now, err := os.Open(log)
	if err == nil {
		defer now.Close()
		text, length, err = saidIn(now, limit)
	}
	if err == nil {
		return text, length
	}
	old, err := os.Open(log + ".1")
	if err != nil || same(old, now) { // it was just given that name
		return text, length
	}
	defer old.Close()
	before, more, _ := saidIn(old, limit-int64(len(text)))
	return append(before, text...), length + more
}

// saidIn reads one of a log's files from the mark on. It fails also where there
// is none; what it returns is right all the same.
func saidIn(f *os.File, limit int64) (text []byte, length int64, err error) {
	var mark [20]byte
	n, err := unix.Fgetxattr(int(f.Fd()), runMark, mark[:])
	from := int64(0)
	if err == nil {
		from, err = strconv.ParseInt(string(mark[:n]), 10, 64)
	}
	info, failed := f.Stat()
	if failed != nil {
		return nil, 0, failed
	}
	length = max(0, info.Size()-max(0, from))
	text, failed = io.ReadAll(io.NewSectionReader(f, info.Size()-min(length, limit), min(length, limit)))
	if failed != nil {
		err = failed
	}
	return text, length, err
}

// same reports whether two names led to one file.
func same(a, b *os.File) bool {
	if a == nil || b == nil {
		return false
	}
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}
