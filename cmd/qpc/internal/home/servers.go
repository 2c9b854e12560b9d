package home

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/transport"
)

// serversFile has a line for each server met: host:port, a space, the pin in
// hexadecimal, or the word authorities where the server's name is verified by
// the system's certificate authorities instead. Empty lines and lines that
// begin with # are left alone.
const (
	serversFile     = "known_servers"
	authoritiesWord = "authorities"
	serversLock     = "known_servers.lock"
)

// Servers is the transport.PinStore in the known_servers file.
type Servers struct {
	home *Home
	// Met, when set, is told of each server that was met for the first time.
	Met func(server string, pin transport.Pin)
	// Replaced, when set, is told of each server whose key has handed over to
	// a new one.
	Replaced func(server string, next transport.Pin)

	mu sync.Mutex
}

var _ transport.PinStore = (*Servers)(nil)

// Servers returns the servers known in this home.
func (h *Home) Servers() *Servers { return &Servers{home: h} }

// Lookup returns the pin of a server.
func (s *Servers) Lookup(server string) (transport.Pin, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, err := s.read()
	if err != nil {
		return transport.Pin{}, false, err
	}
	return s.find(content, server)
}

// Remember adds a server.
func (s *Servers) Remember(server string, pin transport.Pin) error {
	err := s.change(func(content []byte) ([]byte, error) {
		// Another qpc may have met it meanwhile.
		switch known, ok, err := s.find(content, server); {
		case err != nil:
			return nil, err
		case ok && known != pin:
			return nil, &transport.ErrPinChanged{Server: server, Known: known, Presented: pin}
		case ok:
			return content, nil
		}
		return withLine(content, server, pin.String()), nil
	})
	if err == nil && s.Met != nil {
		s.Met(server, pin)
	}
	return err
}

// Replace puts the pin in the place of the one that has handed over to it.
func (s *Servers) Replace(server string, known, next transport.Pin) error {
	changed := false
	err := s.change(func(content []byte) ([]byte, error) {
		switch stored, ok, err := s.find(content, server); {
		case err != nil:
			return nil, err
		case ok && stored == next: // another qpc was quicker
			return content, nil
		case !ok || stored != known:
			return nil, fmt.Errorf("the known key of %s was changed meanwhile; try again", server)
		}
		changed = true
		return withLine(content, server, next.String()), nil
	})
	if err == nil && changed && s.Replaced != nil {
		s.Replaced(server, next)
	}
	return err
}

// ByAuthorities reports whether the server's name is verified by the system's
// certificate authorities.
func (s *Servers) ByAuthorities(server string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, err := s.read()
	if err != nil {
		return false, err
	}
	for line := range bytes.Lines(content) {
		if name, word, ok := strings.Cut(string(line), " "); ok && name == server && strings.TrimSpace(word) == authoritiesWord {
			return true, nil
		}
	}
	return false, nil
}

// UseAuthorities makes the system's certificate authorities the judges of a
// server, in place of a pin.
func (s *Servers) UseAuthorities(server string) error {
	return s.change(func(content []byte) ([]byte, error) { return withLine(content, server, authoritiesWord), nil })
}

// withLine returns the file with one line for a server, in place of any other.
func withLine(content []byte, server, word string) []byte {
	var kept []byte
	for line := range bytes.Lines(content) {
		if name, _, ok := strings.Cut(string(line), " "); !ok || name != server {
			kept = append(kept, line...)
		}
	}
	if len(kept) > 0 && kept[len(kept)-1] != '\n' {
		kept = append(kept, '\n')
	}
	return fmt.Appendf(kept, "%s %s\n", server, word)
}

// Forget removes a server, and reports whether it was known.
func (s *Servers) Forget(server string) (known bool, err error) {
	err = s.change(func(content []byte) ([]byte, error) {
		var kept []byte
		for line := range bytes.Lines(content) {
			if name, _, ok := strings.Cut(string(line), " "); ok && name == server {
				known = true
				continue
			}
			kept = append(kept, line...)
		}
		return kept, nil
	})
	return known, err
}

func (s *Servers) path() string { return filepath.Join(s.home.dir, serversFile) }

func (s *Servers) read() ([]byte, error) {
	content, err := os.ReadFile(s.path())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading the known servers: %w", err)
	}
	return content, nil
}

// find reads the pin of a server. A line that names it and does not parse is
// an error: it must not look like a first meeting.
func (s *Servers) find(content []byte, server string) (transport.Pin, bool, error) {
	lines := bufio.NewScanner(bytes.NewReader(content))
	for n := 1; lines.Scan(); n++ {
		name, hex, ok := strings.Cut(lines.Text(), " ")
		if !ok || name != server {
			continue
		}
		pin, err := transport.ParsePin(strings.TrimSpace(hex))
		if err != nil {
			return transport.Pin{}, false, fmt.Errorf("%s, line %d: %w", s.path(), n, err)
		}
		return pin, true, nil
	}
	if err := lines.Err(); err != nil {
		return transport.Pin{}, false, fmt.Errorf("%s: %w", s.path(), err)
	}
	return transport.Pin{}, false, nil
}

// change rewrites the file, one process at a time.
func (s *Servers) change(edit func([]byte) ([]byte, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.MkdirAll(s.home.dir, dirMode); err != nil {
		return fmt.Errorf("writing the known servers: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(s.home.dir, serversLock), os.O_CREATE|os.O_RDWR, fileMode)
	if err != nil {
		return fmt.Errorf("writing the known servers: %w", err)
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking the known servers: %w", err)
	}
	content, err := s.read()
	if err != nil {
		return err
	}
	edited, err := edit(content)
	if err != nil || bytes.Equal(edited, content) {
		return err
	}
	return s.home.replace(serversFile, edited)
}
