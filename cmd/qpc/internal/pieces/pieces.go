// Package pieces cuts a stream of text into messages.
//
// The pieces, put together, are the stream byte for byte. Each is valid UTF-8
// and ends after a line where one ends in it, else between characters. A
// stream that pauses is not held back: what was read goes out.
package pieces

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// readSize is how much is asked of the stream at once.
const readSize = 16 << 10

// ErrNotText reports a stream that is not UTF-8.
var ErrNotText = errors.New("the input is not UTF-8 text")

// Cutter cuts one stream.
type Cutter struct {
	// Max is the size of the largest piece in bytes, at least utf8.UTFMax.
	Max int
	// Pause is how long the stream may say nothing before what was read of it
	// goes out.
	Pause time.Duration
}

type chunk struct {
	data []byte
	err  error
}

// Cut gives every piece of r to emit, the last one, which may be empty, with
// last set. It returns nil at the end of the stream, ErrNotText, the error of
// the stream or of emit, or ctx's. After an error last was never set. The
// goroutine that reads may stay in a read that does not end; it stops with it.
func (c Cutter) Cut(ctx context.Context, r io.Reader, emit func(piece string, last bool) error) error {
	chunks, stop := make(chan chunk), make(chan struct{})
	defer close(stop)
	go read(r, chunks, stop)

	var held []byte
	var total int64 // what was given to emit
	send := func(n int, last bool) error {
		piece := string(held[:n])
		held = append(held[:0], held[n:]...)
		total += int64(n)
		return emit(piece, last)
	}
	pause := time.NewTimer(c.Pause)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-pause.C:
			if n := whole(held); n > 0 {
				if err := send(n, false); err != nil {
					return err
				}
			}
		case got := <-chunks:
			held = append(held, got.data...)
			end := errors.Is(got.err, io.EOF)
			if bad := invalid(held, end); bad >= 0 {
				return fmt.Errorf("%w: byte %d cannot be read", ErrNotText, total+int64(bad)+1)
			}
			// More than Max is held, so that a piece is full only when the
			// text goes on behind it.
			for len(held) > c.Max {
				if err := send(cut(held[:c.Max]), false); err != nil {
					return err
				}
			}
			switch {
			case end:
				return send(len(held), true)
			case got.err != nil:
				return fmt.Errorf("reading the input: %w", got.err)
			}
			pause.Reset(c.Pause)
		}
	}
}

func read(r io.Reader, chunks chan<- chunk, stop <-chan struct{}) {
	for {
		buffer := make([]byte, readSize)
		n, err := r.Read(buffer)
		select {
		case chunks <- chunk{buffer[:n], err}:
		case <-stop:
			return
		}
		if err != nil {
			return
		}
	}
}

// cut returns where to cut a full piece: after its last line, else before a
// character that it does not hold whole.
func cut(b []byte) int {
	if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
		return i + 1
	}
	return whole(b)
}

// whole returns the length of b without a character cut off at its end.
func whole(b []byte) int {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if start := len(b) - i; utf8.RuneStart(b[start]) {
			if !utf8.FullRune(b[start:]) {
				return start
			}
			break
		}
	}
	return len(b)
}

// invalid returns the index of the first byte that is not UTF-8, or -1. Unless
// the text ends, a character cut off at its end is not judged yet.
func invalid(b []byte, end bool) int {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			if !end && !utf8.FullRune(b[i:]) {
				return -1
			}
			return i
		}
		i += size
	}
	return -1
}

// Check reads a whole stream and returns ErrNotText unless it is UTF-8.
func Check(r io.Reader) error {
	c := Cutter{Max: readSize, Pause: time.Hour}
	return c.Cut(context.Background(), r, func(string, bool) error { return nil })
}
