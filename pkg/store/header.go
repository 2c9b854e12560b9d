package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
)

// errNotSQLite: the bytes do not begin as a SQLite database does.
var errNotSQLite = errors.New("not a SQLite database")

// The database header, https://sqlite.org/fileformat2.html section 1.3:
//
//	offset  0  "SQLite format 3\x00"
//	offset 60  u32 user version
//	offset 68  u32 application id
//
// and the write-ahead log, section 4.1:
//
//	header 32  u32 magic 0x377f0682 or ...83, u32 version 3007000, u32 page size,
//	           u32 checkpoint number, u32 salt1, u32 salt2, u32 sum1, u32 sum2
//	frame  24  u32 page number, u32 pages after commit (0: no commit),
//	           u32 salt1, u32 salt2, u32 sum1, u32 sum2, then the page
//
// all big-endian; the lowest bit of the magic says in which byte order the
// words are taken for the running checksum.
const (
	headerMagic        = "SQLite format 3\x00"
	headerBytes        = 100
	walHeaderBytes     = 32
	walFrameBytes      = 24
	walMagic           = 0x377f0682
	walVersion         = 3007000
	maxPageSize        = 65536
	minPageSize        = 512
	offUserVersion     = 60
	offApplicationID   = 68
	walChecksummedHead = 24 // bytes of the log's header under its checksum
	walChecksummedMeta = 8  // bytes of a frame's header under its checksum
)

// header is what Open decides by.
type header struct {
	userVersion   int32
	applicationID int32
}

// readHeader reads the header that SQLite would see: the one in the last
// committed copy of page 1 in the log, or else the file's own.
func readHeader(file io.ReaderAt, walPath string) (header, error) {
	page := make([]byte, headerBytes)
	if _, err := file.ReadAt(page, 0); errors.Is(err, io.EOF) {
		return header{}, errNotSQLite
	} else if err != nil {
		return header{}, err
	}
	h, err := parseHeader(page)
	if err != nil {
		return header{}, err
	}
	wal, err := os.Open(walPath)
	if errors.Is(err, fs.ErrNotExist) {
		return h, nil
	} else if err != nil {
		return header{}, err
	}
	defer wal.Close()
	newest, err := lastFirstPage(bufio.NewReaderSize(wal, 1<<16))
	if err != nil {
		return header{}, err
	}
	if newest == nil {
		return h, nil
	}
	return parseHeader(newest)
}

// parseHeader takes the first headerBytes bytes of a database.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerBytes || string(b[:len(headerMagic)]) != headerMagic {
		return header{}, errNotSQLite
	}
	return header{
		userVersion:   int32(binary.BigEndian.Uint32(b[offUserVersion:])),
		applicationID: int32(binary.BigEndian.Uint32(b[offApplicationID:])),
	}, nil
}

// lastFirstPage returns the header bytes of the last committed page 1 in a
// write-ahead log, nil if there is none. Like SQLite's own recovery it stops at
// the first frame whose salt or checksum is wrong: that is the log's end.
func lastFirstPage(r io.Reader) ([]byte, error) {
	var head [walHeaderBytes]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, ignoreEOF(err)
	}
	word := func(b []byte, i int) uint32 { return binary.BigEndian.Uint32(b[4*i:]) }
	size := word(head[:], 2)
	if word(head[:], 0)&^1 != walMagic || word(head[:], 1) != walVersion ||
		size < minPageSize || size > maxPageSize || size&(size-1) != 0 {
		return nil, nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if word(head[:], 0)&1 != 0 {
		order = binary.BigEndian
	}
	var sum walSum
	sum.add(order, head[:walChecksummedHead])
	if sum != (walSum{word(head[:], 6), word(head[:], 7)}) {
		return nil, nil
	}
	frame := make([]byte, walFrameBytes+int(size))
	var committed, pending []byte
	for {
		if _, err := io.ReadFull(r, frame); err != nil {
			return committed, ignoreEOF(err)
		}
		sum.add(order, frame[:walChecksummedMeta])
		sum.add(order, frame[walFrameBytes:])
		if word(frame, 2) != word(head[:], 4) || word(frame, 3) != word(head[:], 5) ||
			sum != (walSum{word(frame, 4), word(frame, 5)}) {
			return committed, nil
		}
		if word(frame, 0) == 1 {
			pending = append(pending[:0:0], frame[walFrameBytes:walFrameBytes+headerBytes]...)
		}
		if word(frame, 1) != 0 && pending != nil {
			committed, pending = pending, nil
		}
	}
}

// walSum is the running checksum of a write-ahead log.
type walSum struct{ s0, s1 uint32 }

// add takes in b, whose length is a multiple of 8.
func (s *walSum) add(order binary.ByteOrder, b []byte) {
	for ; len(b) >= 8; b = b[8:] {
		s.s0 += order.Uint32(b) + s.s1
		s.s1 += order.Uint32(b[4:]) + s.s0
	}
}

// ignoreEOF drops the two errors that mean the log ended.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}
