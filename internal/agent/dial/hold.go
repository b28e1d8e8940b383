package dial

import (
	"context"
	"encoding/binary"

	"lodge/internal/agent"
	"lodge/internal/base/errs"
)

// holdMost bounds how many pieces of memory an agent may offer in one call, so
// that one that lies comes to an end.
const holdMost = 1 << 20

// Hold makes the agent keep so many bytes of memory from the guest's programs,
// and returns how many it keeps. take is told the numbers of pages that the
// guest does not use from then on, of which a guest that lies may make up any.
// It is errs.Unsupported if the guest's programs need the memory; what they did
// not need is held then. There is no bound on how long that takes but ctx's.
func (l *Link) Hold(ctx context.Context, bytes uint64, take func(pages []uint32) error) (held uint64, err error) {
	return l.offered(ctx, agent.Request{Op: agent.OpHold, Bytes: bytes}, take)
}

// Squeeze tells take of all pages that the guest does not use at the moment; it
// can use them again when Squeeze returns, and finds zeros in them.
func (l *Link) Squeeze(ctx context.Context, take func(pages []uint32) error) error {
	_, err := l.offered(ctx, agent.Request{Op: agent.OpSqueeze}, take)
	return err
}

func (l *Link) offered(ctx context.Context, r agent.Request, take func(pages []uint32) error) (held uint64, err error) {
	c, err := l.begin(ctx, r)
	if err != nil {
		return 0, err
	}
	defer c.end()
	for range holdMost {
		kind, payload, err := c.frames.Next()
		if err != nil {
			return 0, l.trouble(ctx, err)
		}
		switch kind {
		case agent.KindResult:
			r, err := agent.ParseResult(payload)
			if err != nil {
				return 0, l.trouble(ctx, err)
			}
			return r.Bytes, r.Error.Err()
		case agent.KindPages:
			if err := take(pagesIn(payload)); err != nil {
				return 0, err
			}
			if err := agent.WriteNumbers(c, agent.KindPages); err != nil {
				return 0, l.trouble(ctx, err)
			}
		default:
			return 0, l.trouble(ctx, errMisbehaves)
		}
	}
	return 0, &errs.Error{Op: "agent", Kind: errs.Internal, Msg: "the guest's agent offers memory without end"}
}

// pagesIn reads the numbers of a frame; what is left over of it is nothing.
func pagesIn(payload []byte) []uint32 {
	pages := make([]uint32, 0, len(payload)/4)
	for ; len(payload) >= 4; payload = payload[4:] {
		pages = append(pages, binary.LittleEndian.Uint32(payload))
	}
	return pages
}
