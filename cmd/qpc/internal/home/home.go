// Package home is where qpc keeps its accounts on this machine.
//
//	<home>/known_servers                  host:port and key of each server met
//	<home>/current                        the account registered or logged in last
//	<home>/<server>/<name>/profile.db     one account
//	<home>/<server>/<name>/unfinished     its registration is not confirmed yet
//
// Directories have mode 0700, files 0600. Server and name are escaped, so that
// none of them can lead out of the directory.
package home

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/quicprochat/qpcd/pkg/transport"
	"github.com/quicprochat/qpcd/pkg/username"
)

const (
	currentFile    = "current"
	unfinishedFile = "unfinished"
	databaseFile   = "profile.db"

	dirMode  = 0o700
	fileMode = 0o600
)

// Home is the directory of all accounts.
type Home struct{ dir string }

// New returns the home at dir. It need not exist yet.
func New(dir string) *Home { return &Home{dir: dir} }

// DefaultDir returns where the home is when nobody says otherwise, by the XDG
// base directory specification.
func DefaultDir(getenv func(string) string) (string, error) {
	// The specification: a relative path is to be ignored.
	if dir := getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "qpc"), nil
	}
	if dir := getenv("HOME"); dir != "" {
		return filepath.Join(dir, ".local", "share", "qpc"), nil
	}
	return "", errors.New("HOME is not set, so there is no place for accounts; give one with --home")
}

// Profile names an account on this machine.
type Profile struct {
	Server string // host:port
	Name   string // folded
	home   *Home
}

// Profile returns the account of a name on a server, which need not exist.
func (h *Home) Profile(server transport.Address, name string) (Profile, error) {
	folded, err := username.Fold(name)
	return Profile{Server: server.String(), Name: folded, home: h}, err
}

// Dir returns the directory of the account.
func (p Profile) Dir() string { return filepath.Join(p.home.dir, escape(p.Server), escape(p.Name)) }

// Database returns the file of the account.
func (p Profile) Database() string { return filepath.Join(p.Dir(), databaseFile) }

// String returns name@server.
func (p Profile) String() string { return p.Name + "@" + p.Server }

func (p Profile) is(q Profile) bool { return p.Name == q.Name && p.Server == q.Server }

// Unfinished reports whether the registration was begun and not confirmed.
func (p Profile) Unfinished() bool {
	_, err := os.Stat(filepath.Join(p.Dir(), unfinishedFile))
	return err == nil
}

// Exists reports whether there is such an account, finished or not.
func (p Profile) Exists() bool {
	_, err := os.Stat(p.Database())
	return err == nil
}

// Begin makes the directory of a new account and marks it unfinished.
func (p Profile) Begin() error {
	if err := os.MkdirAll(p.Dir(), dirMode); err != nil {
		return fmt.Errorf("making a place for the account: %w", err)
	}
	if err := os.WriteFile(filepath.Join(p.Dir(), unfinishedFile), nil, fileMode); err != nil {
		return fmt.Errorf("making a place for the account: %w", err)
	}
	return nil
}

// Finish removes the mark of Begin and makes the account the current one.
func (p Profile) Finish() error {
	if err := os.Remove(filepath.Join(p.Dir(), unfinishedFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("finishing the account: %w", err)
	}
	return p.SetCurrent()
}

// Remove deletes the account from this machine.
func (p Profile) Remove() error {
	if err := os.RemoveAll(p.Dir()); err != nil {
		return fmt.Errorf("removing the account from this machine: %w", err)
	}
	_ = os.Remove(filepath.Dir(p.Dir())) // the server's directory, when it is empty
	if current, ok := p.home.current(); ok && current.is(p) {
		_ = os.Remove(filepath.Join(p.home.dir, currentFile))
	}
	return nil
}

// SetCurrent makes the account the one that commands act as by default.
func (p Profile) SetCurrent() error {
	line := escape(p.Server) + "/" + escape(p.Name) + "\n"
	return p.home.replace(currentFile, []byte(line))
}

// current returns the account named by the current file.
func (h *Home) current() (Profile, bool) {
	line, err := os.ReadFile(filepath.Join(h.dir, currentFile))
	if err != nil {
		return Profile{}, false
	}
	server, name, ok := strings.Cut(strings.TrimSpace(string(line)), "/")
	return Profile{Server: unescape(server), Name: unescape(name), home: h}, ok
}

// Profiles returns every finished account, by server and name.
func (h *Home) Profiles() ([]Profile, error) {
	files, err := filepath.Glob(filepath.Join(globEscape(h.dir), "*", "*", databaseFile))
	if err != nil {
		return nil, fmt.Errorf("looking for accounts: %w", err)
	}
	var all []Profile
	for _, file := range files {
		dir := filepath.Dir(file)
		p := Profile{Server: unescape(filepath.Base(filepath.Dir(dir))), Name: unescape(filepath.Base(dir)), home: h}
		if p.Dir() == dir && !p.Unfinished() {
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b Profile) int {
		return strings.Compare(a.Server+"\x00"+a.Name, b.Server+"\x00"+b.Name)
	})
	return all, nil
}

// replace writes a file of the home, whole or not at all.
func (h *Home) replace(name string, content []byte) error {
	if err := os.MkdirAll(h.dir, dirMode); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	f, err := os.CreateTemp(h.dir, name+".new-*") // mode 0600
	if err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(h.dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}

// escape makes a file name of a server or a name: letters and digits of any
// script and a few signs stay, every other byte is %XX, as is a leading dot.
func escape(s string) string {
	var b strings.Builder
	for i, r := range s {
		if unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("-_:[]", r) || r == '.' && i > 0 {
			b.WriteRune(r)
			continue
		}
		for _, c := range []byte(string(r)) {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// unescape undoes escape. What escape would not have made comes back as
// something that escape makes into another name.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		var c byte
		if s[i] == '%' && i+2 < len(s) {
			if n, err := fmt.Sscanf(s[i+1:i+3], "%02X", &c); n == 1 && err == nil {
				b.WriteByte(c)
				i += 2
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// globEscape makes Glob take a path literally.
func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}
