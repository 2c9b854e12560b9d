package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// memory is a file in memory, to send from and to save to.
type memory struct {
	mu   sync.Mutex
	data []byte
}

func (m *memory) ReadAt(b []byte, offset int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if offset >= int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(b, m.data[offset:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(b []byte, offset int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if need := int(offset) + len(b); need > len(m.data) {
		m.data = append(m.data, make([]byte, need-len(m.data))...)
	}
	return copy(m.data[offset:], b), nil
}

func noise(seed byte, size int) *memory {
	m := &memory{data: make([]byte, size)}
	mathrand.NewChaCha8([32]byte{seed}).Read(m.data)
	return m
}

func (m *memory) file(name string) client.File {
	return client.File{Name: name, MIME: "image/png", Size: int64(len(m.data)), Content: m}
}

// gives sends a file to somebody.
func (p *person) gives(peer *person, f client.File) client.Message {
	p.t.Helper()
	u, err := p.Upload(p.t.Context(), f, nil)
	if err != nil {
		p.t.Fatalf("%s cannot upload: %v", p.name, err)
	}
	m, err := p.SendFile(p.t.Context(), p.contact(peer).Identity, u)
	if err != nil {
		p.t.Fatalf("%s cannot send the file: %v", p.name, err)
	}
	return m
}

// gets waits for the message with a file.
func (p *person) gets() client.Message {
	p.t.Helper()
	e := p.until("a file", func(e client.Event) bool { return e.Kind == client.EventMessage && e.Message.Type == e2ee.TypeFileRef })
	return e.Message
}

// saves fetches the file of a message and compares it.
func (p *person) saves(m client.Message, want *memory) {
	p.t.Helper()
	got := &memory{}
	if err := p.Download(p.t.Context(), m, got, 0, nil); err != nil {
		p.t.Fatalf("%s cannot fetch: %v", p.name, err)
	}
	if !bytes.Equal(got.data, want.data) {
		p.t.Fatalf("%s has %d other bytes", p.name, len(got.data))
	}
}

func TestFiles(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	for i, size := range []int{0, 1, e2ee.FileSegment, 256 << 10, 1<<20 + 7} {
		content := noise(byte(i), size)
		sent := alice.gives(bob, content.file("a picture.png"))
		alice.learns(client.StatusSent, sent)
		got := bob.gets()
		if got.Name != "a picture.png" || got.Size != uint64(size) || got.File == nil || got.File.MIME != "image/png" {
			t.Errorf("bob is told of %+v", got)
		}
		bob.saves(got, content)
	}
	// Both have it in their history, and bob remembers what he saved.
	var own, saved int
	for _, p := range []struct{ who, with *person }{{alice, bob}, {bob, alice}} {
		err := p.who.History(t.Context(), p.who.contact(p.with).Identity, 0, func(m client.Message) bool {
			if m.Mine && m.File != nil {
				own++
			}
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	last := bob.lastFile(alice)
	if err := bob.MarkSaved(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if bob.lastFile(alice).File.Saved {
		saved++
	}
	if own != 5 || saved != 1 {
		t.Errorf("alice's history has %d files, bob has saved %d", own, saved)
	}
}

func (p *person) lastFile(peer *person) (last client.Message) {
	p.t.Helper()
	err := p.History(p.t.Context(), p.contact(peer).Identity, 0, func(m client.Message) bool {
		if m.File != nil {
			last = m
		}
		return true
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return last
}

func TestFileProgress(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	content := noise(1, 1<<20)
	check := func(what string) (client.Progress, func(total int64)) {
		last, calls := int64(-1), 0
		var end int64
		return func(done, total int64) {
				if done < last {
					t.Errorf("%s goes back from %d to %d", what, last, done)
				}
				last, end = done, total
				calls++
			}, func(total int64) {
				if last != total || end != total || calls < 4 {
					t.Errorf("%s ends at %d of %d after %d calls, want %d", what, last, end, calls, total)
				}
			}
	}
	sending, sent := check("sending")
	u, err := alice.Upload(t.Context(), content.file("x"), sending)
	if err != nil {
		t.Fatal(err)
	}
	sent(1<<20 + 16*16)
	if _, err := alice.SendFile(t.Context(), alice.contact(bob).Identity, u); err != nil {
		t.Fatal(err)
	}
	fetching, fetched := check("fetching")
	if err := bob.Download(t.Context(), bob.gets(), &memory{}, 0, fetching); err != nil {
		t.Fatal(err)
	}
	fetched(1 << 20)
}

// interrupt returns a context that ends once so many bytes are done.
func interrupt(t *testing.T, after int64) (context.Context, client.Progress) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, func(done, _ int64) {
		if done >= after {
			cancel()
		}
	}
}

// The program dies in the middle, the server too; then it goes on where it
// was, and bob is told once.
func TestUploadGoesOnAfterRestarts(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	content := noise(1, 3<<20)
	ctx, progress := interrupt(t, 1<<20)
	if _, err := alice.Upload(ctx, content.file("x"), progress); !errors.Is(err, context.Canceled) {
		t.Fatalf("the interrupted upload: %v", err)
	}
	alice.off()
	h.close()
	h.start()
	alice.on()
	first := atomic.Int64{}
	first.Store(-1)
	u, err := alice.Upload(t.Context(), content.file("x"), func(done, _ int64) { first.CompareAndSwap(-1, done) })
	if err != nil {
		t.Fatal(err)
	}
	if first.Load() < 1<<20 {
		t.Errorf("it began again at %d", first.Load())
	}
	to := alice.contact(bob).Identity
	if _, err := alice.SendFile(t.Context(), to, u); err != nil {
		t.Fatal(err)
	}
	if _, err := alice.SendFile(t.Context(), to, u); err != nil { // as after a crash
		t.Fatal(err)
	}
	alice.says(bob, "that was all")
	bob.saves(bob.gets(), content)
	bob.reads(alice, "that was all")
	// The same file once more is another upload, under another key.
	again, err := alice.Upload(t.Context(), content.file("x"), nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := alice.SendFile(t.Context(), to, again)
	if err != nil || m.File.Blob == bob.lastFile(alice).File.Blob {
		t.Errorf("the second time: %v, the same blob", err)
	}
}

// The server goes away in the middle of both ways, and comes back.
func TestFilesWaitForTheServer(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	content := noise(1, 3<<20)
	bounce := func(at int64) client.Progress {
		var once sync.Once
		return func(done, _ int64) {
			if done >= at {
				once.Do(func() { h.close(); h.start() })
			}
		}
	}
	u, err := alice.Upload(t.Context(), content.file("x"), bounce(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := alice.SendFile(t.Context(), alice.contact(bob).Identity, u); err != nil {
		t.Fatal(err)
	}
	m, got := bob.gets(), &memory{}
	if err := bob.Download(t.Context(), m, got, 0, bounce(1<<20)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.data, content.data) {
		t.Error("another file came")
	}
}

func TestDownloadGoesOn(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	content := noise(1, 2<<20+99)
	alice.gives(bob, content.file("x"))
	m, part := bob.gets(), &memory{}
	ctx, progress := interrupt(t, 1<<20)
	if err := bob.Download(ctx, m, part, 0, progress); !errors.Is(err, context.Canceled) {
		t.Fatalf("the interrupted download: %v", err)
	}
	have := len(part.data)
	for _, have := range []int{have, have - 1, have - e2ee.FileSegment, 10, len(content.data)} {
		t.Run(fmt.Sprint(have), func(t *testing.T) {
			target := &memory{data: bytes.Clone(content.data[:have])}
			first := int64(-1)
			err := bob.Download(t.Context(), m, target, int64(have), func(done, _ int64) {
				if first < 0 {
					first = done
				}
			})
			if err != nil || !bytes.Equal(target.data, content.data) {
				t.Errorf("%v, or another file", err)
			}
			if want := int64(have / e2ee.FileSegment * e2ee.FileSegment); first != want && first != int64(have) {
				t.Errorf("it went on at %d, want %d", first, want)
			}
		})
	}
	// A beginning that is not the file's is seen.
	part.data[5] ^= 1
	if err := bob.Download(t.Context(), m, part, int64(have), nil); !errors.Is(err, client.ErrFileDamaged) {
		t.Errorf("with a damaged beginning: %v", err)
	}
	bob.saves(m, content)
}

// Under one key only one content ever leaves.
func TestAFileThatChangesIsNotSent(t *testing.T) {
	h := newHouse(t)
	alice := h.register("alice").on()
	for name, change := range map[string]func(m *memory){
		"content": func(m *memory) { m.data[2<<20] ^= 1 },
		"shorter": func(m *memory) { m.data = m.data[:2<<20] },
	} {
		t.Run(name, func(t *testing.T) {
			content := noise(1, 3<<20)
			var once sync.Once
			_, err := alice.Upload(t.Context(), content.file(name), func(done, _ int64) {
				once.Do(func() { content.mu.Lock(); defer content.mu.Unlock(); change(content) })
			})
			if !errors.Is(err, client.ErrFileChanged) {
				t.Errorf("got %v", err)
			}
		})
	}
	// After a restart too: other content by the same name gets another key.
	content := noise(2, 2<<20)
	ctx, progress := interrupt(t, 1<<20)
	if _, err := alice.Upload(ctx, content.file("y"), progress); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	content.data[0] ^= 1
	first := int64(-1)
	if _, err := alice.Upload(t.Context(), content.file("y"), func(done, _ int64) {
		if first < 0 {
			first = done
		}
	}); err != nil || first != 0 {
		t.Errorf("%v; the changed file went on at %d", err, first)
	}
}

func TestFilesThatCannotBe(t *testing.T) {
	h := newHouse(t)
	alice, bob := h.register("alice").on(), h.register("bob").on()
	content := noise(1, 100)
	if _, err := alice.Upload(t.Context(), client.File{Name: "x", Size: e2ee.MaxFile + 1, Content: content}, nil); !errors.Is(err, client.ErrFileTooLarge) {
		t.Errorf("a file too large: %v", err)
	}
	if _, err := alice.Upload(t.Context(), client.File{Name: string(make([]byte, 256)), Size: 100, Content: content}, nil); err == nil {
		t.Error("an endless name passed")
	}
	hello := alice.says(bob, "hello")
	if err := alice.Download(t.Context(), hello, &memory{}, 0, nil); !errors.Is(err, client.ErrNoFile) {
		t.Errorf("the file of a text: %v", err)
	}
	// What the sender says of a file is checked against what comes.
	m := alice.gives(bob, content.file("x"))
	for name, change := range map[string]func(m *client.Message, f *client.FileRef){
		"another size":    func(m *client.Message, _ *client.FileRef) { m.Size-- },
		"an endless size": func(m *client.Message, _ *client.FileRef) { m.Size = 1<<64 - 1 },
		"another key":     func(_ *client.Message, f *client.FileRef) { f.Key[0] ^= 1 },
	} {
		bad, ref := m, *m.File
		bad.File = &ref
		change(&bad, &ref)
		err := bob.Download(t.Context(), bad, &memory{}, 0, nil)
		if !errors.Is(err, client.ErrFileDamaged) && !errors.Is(err, client.ErrFileTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
	gone, ref := m, *m.File
	gone.File = &ref
	ref.Blob[0] ^= 1
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := bob.Download(ctx, gone, &memory{}, 0, nil); rpc.CodeOf(err) != qpcpb.CodeBlobNotFound {
		t.Errorf("a file that is gone: %v", err)
	}
}
