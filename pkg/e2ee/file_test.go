package e2ee_test

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

func sealFile(t *testing.T, key e2ee.FileKey, data []byte) (c *e2ee.FileCipher, segments [][]byte) {
	t.Helper()
	c, err := e2ee.NewFileCipher(key, int64(len(data)))
	must(t, err)
	total := 0
	for i := range c.Segments() {
		sealed, err := c.Seal(nil, i, data[i*e2ee.FileSegment:][:c.SegmentSize(i)])
		must(t, err)
		segments, total = append(segments, sealed), total+len(sealed)
	}
	if int64(total) != c.SealedSize() {
		t.Fatalf("%d bytes sealed, SealedSize says %d", total, c.SealedSize())
	}
	return c, segments
}

func newFileKey(t *testing.T) e2ee.FileKey {
	t.Helper()
	key, err := e2ee.NewFileKey(rand.Reader)
	must(t, err)
	return key
}

func TestFileRoundTrip(t *testing.T) {
	for _, size := range []int{0, 1, e2ee.FileSegment - 1, e2ee.FileSegment, e2ee.FileSegment + 1, 3 * e2ee.FileSegment} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			data := make([]byte, size)
			rand.Read(data)
			c, segments := sealFile(t, newFileKey(t), data)
			var back []byte
			for i, sealed := range segments {
				var err error
				back, err = c.Open(back, int64(i), sealed)
				must(t, err)
			}
			if !bytes.Equal(back, data) {
				t.Error("it does not come back")
			}
		})
	}
}

// The layout by its description, without the code under test.
func TestFileLayout(t *testing.T) {
	key := e2ee.FileKey{1, 2, 3}
	data := bytes.Repeat([]byte("x"), e2ee.FileSegment+5)
	_, segments := sealFile(t, key, data)
	derived, err := hkdf.Key(sha256.New, key[:], nil, "qpc file v1", 32)
	must(t, err)
	aead, err := chacha20poly1305.New(derived)
	must(t, err)
	for i, nonce := range [][]byte{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1}} {
		segment, err := aead.Open(nil, nonce, segments[i], nil)
		must(t, err)
		if !bytes.Equal(segment, data[i*e2ee.FileSegment:min((i+1)*e2ee.FileSegment, len(data))]) {
			t.Errorf("segment %d is another", i)
		}
	}
}

func TestFileSizes(t *testing.T) {
	key := newFileKey(t)
	largest, err := e2ee.NewFileCipher(key, e2ee.MaxFile)
	must(t, err)
	if largest.SealedSize() != e2ee.MaxSealedFile {
		t.Errorf("the largest file becomes %d bytes, want %d", largest.SealedSize(), e2ee.MaxSealedFile)
	}
	for _, size := range []int64{-1, e2ee.MaxFile + 1, 1<<63 - 1} {
		if _, err := e2ee.NewFileCipher(key, size); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
}

// Every change of a sealed file is seen: a bit, another place, another key, an
// end that comes too soon or too late.
func TestFileTampering(t *testing.T) {
	key := newFileKey(t)
	data := make([]byte, 3*e2ee.FileSegment)
	c, segments := sealFile(t, key, data)
	other, err := e2ee.NewFileCipher(newFileKey(t), int64(len(data)))
	must(t, err)
	shorter, err := e2ee.NewFileCipher(key, int64(len(data))-e2ee.FileSegment)
	must(t, err)
	longer, err := e2ee.NewFileCipher(key, int64(len(data))+1)
	must(t, err)
	flipped := func(at int) []byte {
		b := bytes.Clone(segments[1])
		b[at] ^= 1
		return b
	}
	for name, test := range map[string]struct {
		c      *e2ee.FileCipher
		i      int64
		sealed []byte
		want   error
	}{
		"first bit":           {c, 1, flipped(0), e2ee.ErrDecrypt},
		"tag":                 {c, 1, flipped(e2ee.FileSealedSegment - 1), e2ee.ErrDecrypt},
		"another place":       {c, 0, segments[1], e2ee.ErrDecrypt},
		"last in the middle":  {c, 1, segments[2], e2ee.ErrDecrypt},
		"middle at the end":   {shorter, 1, segments[1], e2ee.ErrDecrypt},
		"more behind the end": {longer, 2, segments[2], e2ee.ErrDecrypt},
		"another key":         {other, 1, segments[1], e2ee.ErrDecrypt},
		"cut":                 {c, 1, segments[1][:100], e2ee.ErrMalformed},
		"nothing":             {c, 1, nil, e2ee.ErrMalformed},
		"longer":              {c, 1, append(bytes.Clone(segments[1]), 0), e2ee.ErrMalformed},
		"no such place":       {c, 3, segments[2], e2ee.ErrMalformed},
		"place below zero":    {c, -1, segments[0], e2ee.ErrMalformed},
	} {
		if _, err := test.c.Open(nil, test.i, test.sealed); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	for _, segment := range [][]byte{nil, make([]byte, 10), make([]byte, e2ee.FileSegment+1)} {
		if _, err := c.Seal(nil, 1, segment); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("sealing %d bytes: %v", len(segment), err)
		}
	}
}
