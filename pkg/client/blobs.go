package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// How a file goes to somebody: it is sealed under a key of its own, stored on
// the server by the hash of what that gives, and a FileRef message carries
// hash and key. It is read three times and never held whole: once to learn
// the hash, once to send it (and once more to see that nothing has changed
// when a send is taken up again).
//
//	Upload     seal, hash → note key and hash → chunks → the server has it
//	SendFile   FileRef into the outbox, the note goes
//	Download   chunks → hash, open, write → compare the hash
//
// The note, below "upload/", is what makes an upload go on after a restart of
// the program, and keeps a file from being sealed twice under one key with
// different content: what leaves is compared with what was hashed, chunk by
// chunk.

const (
	// blobChunk is how much of a blob a call carries (PROTOCOL 7.8).
	blobChunk = 256 << 10
	// blobTimeout bounds a call: the server's own bound is 120 s, since it
	// hashes the whole at the last chunk.
	blobTimeout = 130 * time.Second
	// blobRetries is how often a transfer is tried again without getting any
	// further, where the server said that it may be.
	blobRetries = 5
	// blobPause is how long it waits before that, unless the server says.
	blobPause = time.Second
	// linkPause is how often a transfer looks whether the server is back.
	linkPause = 100 * time.Millisecond
	// maxUploads bounds the notes of uploads; the oldest goes.
	maxUploads = 32
	// uploadsLast is how long a note is of use: the server keeps an unfinished
	// upload for a day, and a finished one that nobody was told of is waste.
	uploadsLast = 7 * 24 * time.Hour
	// MaxFileName is the longest name of a file, in bytes: what file systems
	// allow.
	MaxFileName = 255
)

// File is a file to send. Content is read at any offset, more than once, and
// must not change meanwhile; if it does, Upload fails.
type File struct {
	Name    string
	MIME    string // told to the reader only; empty for unknown
	Size    int64
	Content io.ReaderAt
}

// FileRef is what a message holds to fetch a file by.
type FileRef struct {
	Blob [32]byte
	Key  e2ee.FileKey
	MIME string `json:",omitempty"`
	// Saved is set by MarkSaved.
	Saved bool `json:",omitempty"`
}

// Uploaded is a file that the server has, ready to be sent to somebody.
type Uploaded struct {
	key  string // of the note
	note uploadNote
}

// uploadNote is what must outlive the program while a file is sent.
type uploadNote struct {
	ID    e2ee.MessageID // of the message that will carry it
	Name  string
	MIME  string
	Size  int64
	Key   e2ee.FileKey
	Blob  [32]byte
	Begun time.Time
}

const prefixUpload = "upload/"

func uploadKey(id e2ee.MessageID) string { return prefixUpload + hex.EncodeToString(id[:]) }

var (
	// ErrFileChanged reports a file that changed while it was read.
	ErrFileChanged = errors.New("the file changed while it was read; send it again")
	// ErrFileDamaged reports a file that is not what its sender sent, or whose
	// beginning here is not.
	ErrFileDamaged = errors.New("what came is not the file that was sent")
	// ErrFileTooLarge reports a file above e2ee.MaxFile.
	ErrFileTooLarge = fmt.Errorf("a file may have at most %d bytes", e2ee.MaxFile)
	// ErrNoFile reports a message without a file, or without its key.
	ErrNoFile = errors.New("the message has no file that can be fetched")
)

// Progress is told how many bytes of a transfer are done, of how many.
type Progress func(done, total int64)

// Upload seals a file and brings it to the server, going on where an earlier
// Upload of the same file was cut off. It waits for the server as long as ctx
// lets it, so that Run must be running. progress may be nil.
func (c *Client) Upload(ctx context.Context, f File, progress Progress) (Uploaded, error) {
	switch {
	case f.Size > e2ee.MaxFile:
		return Uploaded{}, ErrFileTooLarge
	case len(f.Name) > MaxFileName || len(f.MIME) > MaxFileName:
		return Uploaded{}, fmt.Errorf("the name of a file may have at most %d bytes", MaxFileName)
	}
	u, sealed, err := c.prepare(ctx, f)
	if err != nil {
		return Uploaded{}, err
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	err = c.upload(ctx, u.note.Blob, sealed, progress)
	if code := rpc.CodeOf(err); code == qpcpb.CodeBlobMismatch || errors.Is(err, ErrFileChanged) {
		err = errors.Join(err, c.box.store.Apply(ctx, Change{Key: u.key}))
	}
	if err != nil {
		return Uploaded{}, fmt.Errorf("sending the file: %w", err)
	}
	return u, nil
}

// prepare finds the note of an earlier upload of the same file, or makes one.
func (c *Client) prepare(ctx context.Context, f File) (Uploaded, *sealedFile, error) {
	now := c.options.Now()
	var drop []Change
	var found []Uploaded
	var others []string // oldest first: ids sort by time
	err := list(ctx, c.box, prefixUpload, func(key string, note uploadNote) (bool, error) {
		switch age := now.Sub(note.Begun); {
		case age > uploadsLast || age < -uploadsLast:
			drop = append(drop, Change{Key: key})
		case note.Name == f.Name && note.Size == f.Size:
			found = append(found, Uploaded{key, note})
		default:
			others = append(others, key)
		}
		return true, nil
	})
	if err != nil {
		return Uploaded{}, nil, err
	}
	for _, u := range found {
		sealed, err := sealFile(ctx, u.note.Key, f)
		if err != nil {
			return Uploaded{}, nil, err
		}
		if sealed.blob == u.note.Blob {
			return u, sealed, nil
		}
		drop = append(drop, Change{Key: u.key}) // other content by that name
	}
	for ; len(others) >= maxUploads; others = others[1:] {
		drop = append(drop, Change{Key: others[0]})
	}
	u := Uploaded{note: uploadNote{Name: f.Name, MIME: f.MIME, Size: f.Size, Begun: now}}
	if u.note.ID, err = e2ee.NewMessageID(c.options.Rand, now); err != nil {
		return Uploaded{}, nil, err
	}
	if u.note.Key, err = e2ee.NewFileKey(c.options.Rand); err != nil {
		return Uploaded{}, nil, err
	}
	sealed, err := sealFile(ctx, u.note.Key, f)
	if err != nil {
		return Uploaded{}, nil, err
	}
	u.note.Blob, u.key = sealed.blob, uploadKey(u.note.ID)
	b := c.box.batch()
	b.put(u.key, u.note)
	b.changes = append(b.changes, drop...)
	return u, sealed, b.apply(ctx)
}

// upload sends what the server does not have yet.
func (c *Client) upload(ctx context.Context, blob [32]byte, sealed *sealedFile, progress Progress) error {
	total := sealed.size()
	var next int64
	asked := false
	return c.transfer(ctx, func(ctx context.Context, calls qpcpb.BlobClient) (moved, done bool, err error) {
		request := &qpcpb.UploadBlobRequest{BlobHash: blob[:], TotalSize: uint64(total), MimeType: "application/octet-stream"}
		if asked {
			if request.Chunk, err = sealed.chunk(next); err != nil {
				return false, false, err
			}
			request.Offset = uint64(next)
		}
		response, err := calls.UploadBlob(ctx, request)
		if err != nil {
			asked = false
			return false, false, err
		}
		if response.NextOffset > uint64(total) || response.NextOffset%blobChunk != 0 && response.NextOffset != uint64(total) {
			return false, false, fmt.Errorf("%w: it wants the file from byte %d on", rpc.ErrProtocol, response.NextOffset)
		}
		moved, asked = int64(response.NextOffset) > next, true
		next = int64(response.NextOffset)
		progress(next, total)
		return moved, len(response.BlobId) > 0, nil
	})
}

// transfer makes one call after another until one says that all is done. What
// the server or the network refuses for now is tried again: without end while
// the server is away, and blobRetries times where nothing moves.
func (c *Client) transfer(ctx context.Context, call func(context.Context, qpcpb.BlobClient) (moved, done bool, err error)) error {
	for failures := 0; ; {
		l, err := c.awaitLink(ctx)
		if err != nil {
			return err
		}
		bounded, cancel := context.WithTimeout(ctx, blobTimeout)
		moved, done, err := call(bounded, qpcpb.NewBlobClient(l.rpc))
		cancel()
		pause := blobPause
		var answer *rpc.Error
		switch {
		case err == nil && done:
			return nil
		case err == nil && moved:
			failures = 0
			continue
		case err == nil: // it was asked where to go on
			if failures++; failures > blobRetries {
				return fmt.Errorf("%w: the transfer does not get on", rpc.ErrProtocol)
			}
			continue
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &answer):
			if !passes(answer) {
				return err
			}
			pause = max(pause, answer.RetryAfter)
			failures++
		case errors.Is(err, rpc.ErrProtocol), errors.Is(err, ErrFileChanged), errors.Is(err, ErrFileDamaged), errors.Is(err, errReading):
			return err
		default: // the connection
			pause = linkPause
		}
		if failures > blobRetries {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// passes reports whether trying again may help.
func passes(answer *rpc.Error) bool {
	switch answer.Status {
	case qpcpb.StatusRateLimited, qpcpb.StatusUnavailable, qpcpb.StatusDeadlineExceeded, qpcpb.StatusInternal:
		return true
	}
	return answer.Code == qpcpb.CodeBlobOffset // somebody else goes on with it
}

// awaitLink waits for a connection.
func (c *Client) awaitLink(ctx context.Context) (*link, error) {
	for {
		if l, err := c.online(); err == nil {
			return l, nil
		}
		select {
		case <-time.After(linkPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// SendFile tells a peer of a file that the server has. Like Send it stores the
// message, which goes out as soon as it can. A file is told of once, however
// often a program is cut off and tries again.
func (c *Client) SendFile(ctx context.Context, peer rpc.IdentityKey, u Uploaded) (Message, error) {
	n := u.note
	var at uint64
	var m Message
	known, err := c.box.get(ctx, messageIDKey(peer, n.ID), &at)
	if err == nil && known {
		_, err = c.box.get(ctx, messageKey(peer, at), &m)
	} else if err == nil {
		key := [32]byte(n.Key)
		m, err = c.enqueue(ctx, peer, &e2ee.Message{
			Type: e2ee.TypeFileRef, ID: n.ID, Blob: n.Blob, Name: n.Name, Size: uint64(n.Size), MIME: n.MIME, FileKey: &key,
		})
	}
	if err != nil {
		return Message{}, err
	}
	return m, c.box.store.Apply(ctx, Change{Key: u.key})
}

// fileOf returns the file that a message refers to, nil for none.
func fileOf(m *e2ee.Message) *FileRef {
	if m.Type != e2ee.TypeFileRef || m.FileKey == nil {
		return nil
	}
	return &FileRef{Blob: m.Blob, Key: *m.FileKey, MIME: m.MIME}
}

// MarkSaved remembers that the file of a message lies where the user wants it.
func (c *Client) MarkSaved(ctx context.Context, m Message) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var stored Message
	known, err := c.box.get(ctx, m.key(), &stored)
	if err != nil || !known || stored.File == nil {
		return err
	}
	stored.File.Saved = true
	b := c.box.batch()
	b.put(m.key(), stored)
	return b.apply(ctx)
}

// Target is where a file is written. What an earlier Download wrote is read
// again, to go on behind it.
type Target interface {
	io.ReaderAt
	io.WriterAt
}

// Download fetches the file of a message into a target that holds the first
// have bytes of it already, from an earlier Download that was cut off. The
// target's content is to be trusted only once Download has returned nil: then
// it is what the sender sent. Like Upload it waits for the server as long as
// ctx lets it; progress, which may be nil, counts bytes of the file.
func (c *Client) Download(ctx context.Context, m Message, to Target, have int64, progress Progress) error {
	if m.File == nil {
		return ErrNoFile
	}
	if m.Size > e2ee.MaxFile {
		return ErrFileTooLarge
	}
	if progress == nil {
		progress = func(int64, int64) {}
	}
	d := &download{to: to, whole: sha256.New(), size: int64(m.Size)}
	var err error
	if d.cipher, err = e2ee.NewFileCipher(m.File.Key, d.size); err != nil {
		return err
	}
	if err := d.skip(ctx, min(have, d.size)); err != nil {
		return err
	}
	total := d.cipher.SealedSize()
	progress(d.done(), d.size)
	err = c.transfer(ctx, func(ctx context.Context, calls qpcpb.BlobClient) (moved, done bool, err error) {
		if d.at == total { // only what was here already
			return false, true, nil
		}
		response, err := calls.DownloadBlob(ctx, &qpcpb.DownloadBlobRequest{BlobId: m.File.Blob[:], Offset: uint64(d.at), Length: blobChunk})
		if err != nil {
			return false, false, err
		}
		switch n := int64(len(response.Chunk)); {
		case response.TotalSize != uint64(total):
			return false, false, fmt.Errorf("%w: the stored file has %d bytes, not %d", ErrFileDamaged, response.TotalSize, total)
		case n == 0 || n > total-d.at:
			return false, false, fmt.Errorf("%w: it gave %d bytes at %d of %d", rpc.ErrProtocol, n, d.at, total)
		}
		if err := d.take(response.Chunk); err != nil {
			return false, false, err
		}
		progress(d.done(), d.size)
		return true, d.at == total, nil
	})
	if err != nil {
		return fmt.Errorf("fetching the file: %w", err)
	}
	if [32]byte(d.whole.Sum(nil)) != m.File.Blob {
		return ErrFileDamaged
	}
	return nil
}

// errReading marks errors of the program's side of a transfer.
var errReading = errors.New("this machine")

// download is the state of a Download.
type download struct {
	to      Target
	cipher  *e2ee.FileCipher
	size    int64
	whole   hash.Hash
	at      int64        // of the sealed file, how far it was taken
	segment int64        // that comes next
	pending bytes.Buffer // of the sealed file, not yet a segment
	plain   []byte
}

// done returns how much of the file is written.
func (d *download) done() int64 { return min(d.segment*e2ee.FileSegment, d.size) }

// skip passes over the whole segments among the first have bytes: sealed
// again they are what the server would send.
func (d *download) skip(ctx context.Context, have int64) error {
	plain := make([]byte, e2ee.FileSegment)
	var sealed []byte
	for d.segment < d.cipher.Segments() && d.segment*e2ee.FileSegment+int64(d.cipher.SegmentSize(d.segment)) <= have {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		segment := plain[:d.cipher.SegmentSize(d.segment)]
		if err := readAt(d.to, segment, d.segment*e2ee.FileSegment); err != nil {
			return fmt.Errorf("reading what is here of the file: %w", err)
		}
		var err error
		if sealed, err = d.cipher.Seal(sealed[:0], d.segment, segment); err != nil {
			return err
		}
		d.whole.Write(sealed) // never fails
		d.at += int64(len(sealed))
		d.segment++
	}
	return nil
}

// take opens and writes what has become whole segments.
func (d *download) take(chunk []byte) error {
	d.whole.Write(chunk)   // never fails
	d.pending.Write(chunk) // never fails
	d.at += int64(len(chunk))
	for d.segment < d.cipher.Segments() {
		want := d.cipher.SegmentSize(d.segment) + e2ee.FileSealedSegment - e2ee.FileSegment
		if d.pending.Len() < want {
			return nil
		}
		var err error
		if d.plain, err = d.cipher.Open(d.plain[:0], d.segment, d.pending.Next(want)); err != nil {
			return fmt.Errorf("%w: %w", ErrFileDamaged, err)
		}
		if _, err := d.to.WriteAt(d.plain, d.segment*e2ee.FileSegment); err != nil {
			return fmt.Errorf("%w: writing the file: %w", errReading, err)
		}
		d.segment++
	}
	return nil
}

// sealedFile gives the chunks of a file's sealed form. Each is compared with
// what it was when the whole was hashed, so that no two contents ever leave
// under one key.
type sealedFile struct {
	file   File
	cipher *e2ee.FileCipher
	blob   [32]byte
	chunks [][32]byte // hashes

	plain  []byte
	sealed []byte // the segment `at`
	at     int64
}

func sealFile(ctx context.Context, key e2ee.FileKey, f File) (*sealedFile, error) {
	cipher, err := e2ee.NewFileCipher(key, f.Size)
	if err != nil {
		return nil, err
	}
	s := &sealedFile{file: f, cipher: cipher, plain: make([]byte, e2ee.FileSegment), at: -1}
	whole := sha256.New()
	for offset := int64(0); offset < s.size(); offset += blobChunk {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		chunk, err := s.read(offset)
		if err != nil {
			return nil, err
		}
		whole.Write(chunk) // never fails
		s.chunks = append(s.chunks, sha256.Sum256(chunk))
	}
	s.blob = [32]byte(whole.Sum(nil))
	return s, nil
}

func (s *sealedFile) size() int64 { return s.cipher.SealedSize() }

// chunk returns the chunk that begins at offset, or ErrFileChanged.
func (s *sealedFile) chunk(offset int64) ([]byte, error) {
	chunk, err := s.read(offset)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(chunk) != s.chunks[offset/blobChunk] {
		return nil, ErrFileChanged
	}
	return chunk, nil
}

// read seals what the chunk at offset covers.
func (s *sealedFile) read(offset int64) ([]byte, error) {
	end := min(offset+blobChunk, s.size())
	chunk := make([]byte, 0, end-offset)
	for offset < end {
		i := offset / e2ee.FileSealedSegment
		if i != s.at {
			plain := s.plain[:s.cipher.SegmentSize(i)]
			s.at = -1
			err := readAt(s.file.Content, plain, i*e2ee.FileSegment)
			if errors.Is(err, io.EOF) {
				return nil, ErrFileChanged // it was longer
			}
			if err != nil {
				return nil, fmt.Errorf("%w: reading the file: %w", errReading, err)
			}
			if s.sealed, err = s.cipher.Seal(s.sealed[:0], i, plain); err != nil {
				return nil, err
			}
			s.at = i
		}
		from := offset - i*e2ee.FileSealedSegment
		n := min(int64(len(s.sealed))-from, end-offset)
		chunk = append(chunk, s.sealed[from:from+n]...)
		offset += n
	}
	return chunk, nil
}

// readAt fills b. A reader may say that its end has come with the last bytes.
func readAt(r io.ReaderAt, b []byte, offset int64) error {
	n, err := r.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}
