package e2ee

import (
	"encoding/binary"
	"errors"
)

// This file reads and writes stored state: big-endian numbers, and byte strings
// after their length (encoding/binary's Uvarint).

// encoder appends; it cannot fail.
type encoder struct{ buf []byte }

func (e *encoder) u8(v uint8)   { e.buf = append(e.buf, v) }
func (e *encoder) u32(v uint32) { e.buf = binary.BigEndian.AppendUint32(e.buf, v) }
func (e *encoder) u64(v uint64) { e.buf = binary.BigEndian.AppendUint64(e.buf, v) }
func (e *encoder) raw(b []byte) { e.buf = append(e.buf, b...) }

func (e *encoder) bool(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}

func (e *encoder) vector(b []byte) {
	e.buf = binary.AppendUvarint(e.buf, uint64(len(b)))
	e.raw(b)
}

var errShort = errors.New("cut short")

// decoder reads forward; after the first fault err is set and it gives zeros.
// Byte slices it hands out are views into its input.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.rest = nil
}

func (d *decoder) take(n int) []byte {
	if d.err != nil || n < 0 || n > len(d.rest) {
		d.fail(errShort)
		return nil
	}
	b := d.rest[:n:n]
	d.rest = d.rest[n:]
	return b
}

func (d *decoder) number(size int) uint64 {
	var n uint64
	for _, b := range d.take(size) {
		n = n<<8 | uint64(b)
	}
	return n
}

func (d *decoder) u8() uint8   { return uint8(d.number(1)) }
func (d *decoder) u32() uint32 { return uint32(d.number(4)) }
func (d *decoder) u64() uint64 { return d.number(8) }

func (d *decoder) bool() bool {
	switch d.u8() {
	case 0:
		return false
	case 1:
		return true
	}
	d.fail(errors.New("a flag is neither 0 nor 1"))
	return false
}

func (d *decoder) vector() []byte {
	n, size := binary.Uvarint(d.rest)
	if d.err != nil || size <= 0 || n > uint64(len(d.rest)-size) {
		d.fail(errShort)
		return nil
	}
	d.take(size)
	return d.take(int(n))
}

// fixed reads a vector that must have size bytes.
func (d *decoder) fixed(size int) []byte {
	b := d.vector()
	if d.err == nil && len(b) != size {
		d.fail(errors.New("a vector has the wrong length"))
		return nil
	}
	return b
}

// count reads how many items follow, each of at least one byte.
func (d *decoder) count(most int) int {
	n := d.u32()
	if uint64(n) > uint64(most) || uint64(n) > uint64(len(d.rest)) {
		d.fail(errors.New("a list is too long"))
		return 0
	}
	return int(n)
}

// done is the error of the whole reading: the first fault, or bytes left over.
func (d *decoder) done() error {
	if d.err == nil && len(d.rest) > 0 {
		d.err = errors.New("bytes are left over")
	}
	return d.err
}
