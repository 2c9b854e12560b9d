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
// hexadecimal. Empty lines and lines that begin with # are left alone.
const (
	serversFile = "known_servers"
	serversLock = "known_servers.lock"
)

// Servers is the transport.PinStore in the known_servers file.
type Servers struct {
	home *Home
	// Met, when set, is told of each server that was met for the first time.
	Met func(server string, pin transport.Pin)

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
		if len(content) > 0 && content[len(content)-1] != '\n' {
			content = append(content, '\n')
		}
		return fmt.Appendf(content, "%s %s\n", server, pin), nil
	})
	if err == nil && s.Met != nil {
		s.Met(server, pin)
	}
	return err
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
