package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/quicprochat/qpcd/pkg/client"
)

const (
	// maxSavedName is the longest name that a saved file gets, in bytes: with
	// a number it still fits what file systems allow.
	maxSavedName = 200
	// maxExtension is the longest ending that a shortened name keeps.
	maxExtension = 16
	// maxNumbered bounds the names that are tried until one is free.
	maxNumbered = 10_000
	// fallbackName is for files whose name says nothing.
	fallbackName = "file"
)

type saveCmd struct {
	Numbers []uint64      `arg:"" optional:"" help:"Which files, by the numbers that the list shows."`
	All     bool          `help:"Save all that have not been saved yet."`
	From    string        `placeholder:"NAME" help:"Only files of one person."`
	Into    string        `default:"." placeholder:"DIR" help:"The directory to save in; the present one unless given."`
	Timeout time.Duration `placeholder:"DURATION" help:"How long to wait for the server; for ever unless given."`
	JSON    bool          `name:"json" help:"Print JSON, one object for each file."`
}

// Help is the long help of the command.
func (saveCmd) Help() string {
	return "Without numbers and --all it lists the files. A file is saved under the name that its sender gave it, without what could lead elsewhere; where the name is taken it gets a number. The path is printed. What is cut off goes on with the same command. The server keeps a file for 30 days."
}

// fileJSON is a file as save prints it.
type fileJSON struct {
	No     uint64     `json:"no"`
	Peer   string     `json:"peer"`
	Name   string     `json:"name"`
	Size   uint64     `json:"size"`
	SentAt *time.Time `json:"sent_at,omitempty"`
	Saved  bool       `json:"saved"`
	Path   string     `json:"path,omitempty"` // where it lies now
}

// received is a file and who sent it.
type received struct {
	client.Message
	from string
}

func (r received) json(path string) fileJSON {
	return fileJSON{No: r.No, Peer: r.from, Name: r.Name, Size: r.Size, SentAt: when(r.SentAt), Saved: r.File.Saved, Path: path}
}

func (cmd *saveCmd) Run(ctx context.Context, a *app) error {
	if cmd.All && len(cmd.Numbers) > 0 {
		return usageError{errors.New("either numbers or --all")}
	}
	s, err := a.open(ctx, cmd.From)
	if err != nil {
		return err
	}
	defer s.close()
	bounded := ctx
	if cmd.Timeout > 0 {
		var cancel context.CancelFunc
		bounded, cancel = context.WithTimeout(ctx, cmd.Timeout)
		defer cancel()
	}
	t := newTracker(s)
	done := t.follow(ctx, s.start(context.WithoutCancel(ctx)))
	defer func() { s.cancel(); <-done }()
	// What waits at the server is received first, if it can be reached.
	if err := t.until(bounded, func() bool { return t.tried }); err != nil {
		return err
	}
	files, err := cmd.files(ctx, s)
	if err != nil {
		return err
	}
	if !cmd.All && len(cmd.Numbers) == 0 {
		return cmd.list(a, files)
	}
	chosen, err := cmd.choose(files)
	if err != nil || len(chosen) == 0 {
		return err
	}
	root, err := os.OpenRoot(cmd.Into)
	if err != nil {
		return fmt.Errorf("the directory to save in cannot be used: %w", err)
	}
	defer root.Close() // nothing is written through it any more
	bounded, end := t.whileRunning(bounded)
	defer end()
	var failed []error
	for _, file := range chosen {
		name, err := saveFile(bounded, s, root, file)
		if bounded.Err() != nil {
			return cutOff(context.Cause(bounded))
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("%s (number %d) was not saved: %w", forTerminal(file.Name), file.No, err))
			continue
		}
		file.File.Saved = true
		if err := cmd.tell(a, file, filepath.Join(cmd.Into, name)); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// files returns the files received, oldest first.
func (cmd *saveCmd) files(ctx context.Context, s *session) (files []received, err error) {
	contacts, err := s.Contacts(ctx)
	if err != nil {
		return nil, err
	}
	if cmd.From != "" {
		only, err := s.known(ctx, cmd.From)
		if err != nil {
			return nil, err
		}
		contacts = []client.Contact{only}
	}
	for _, c := range contacts {
		err := s.History(ctx, c.Identity, 0, func(m client.Message) bool {
			if m.File != nil && !m.Mine {
				files = append(files, received{m, displayName(c.Name, c.Identity)})
			}
			return true
		})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(files, func(a, b received) int { return cmp.Compare(a.No, b.No) })
	return files, nil
}

func (cmd *saveCmd) list(a *app, files []received) error {
	rows := [][]string{{"NO", "FROM", "SIZE", "SENT", "NAME", ""}}
	for _, file := range files {
		if cmd.JSON {
			if err := a.json(file.json("")); err != nil {
				return err
			}
			continue
		}
		sent, saved := "", ""
		if !file.SentAt.IsZero() {
			sent = ago(file.SentAt)
		}
		if file.File.Saved {
			saved = "saved"
		}
		rows = append(rows, []string{fmt.Sprint(file.No), file.from, byteSize(file.Size), sent, forTerminal(cleanName(file.Name)), saved})
	}
	if cmd.JSON {
		return nil
	}
	if len(files) == 0 {
		a.note("no files have come")
		return nil
	}
	return a.table(rows)
}

// choose returns the files that are to be saved.
func (cmd *saveCmd) choose(files []received) (chosen []received, err error) {
	if cmd.All {
		return slices.DeleteFunc(files, func(r received) bool { return r.File.Saved }), nil
	}
	for _, no := range cmd.Numbers {
		at := slices.IndexFunc(files, func(r received) bool { return r.No == no })
		if at < 0 {
			return nil, withHint(fmt.Errorf("there is no file number %d", no), "qpc save lists them")
		}
		chosen = append(chosen, files[at])
	}
	return chosen, nil
}

func (cmd *saveCmd) tell(a *app, file received, path string) error {
	if cmd.JSON {
		return a.json(file.json(path))
	}
	_, err := fmt.Fprintln(a.out, path)
	return err
}

// saveFile fetches a file into the directory and returns its name there. Until
// it is whole it has a hidden name of its own, by which it goes on later.
func saveFile(ctx context.Context, s *session, root *os.Root, file received) (name string, err error) {
	part := ".qpc-" + hex.EncodeToString(file.File.Blob[:]) + ".part"
	f, err := root.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	err = fetch(ctx, s, f, file)
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return "", err
	}
	if name, err = settle(root, part, cleanName(file.Name)); err != nil {
		return "", err
	}
	return name, s.MarkSaved(ctx, file.Message)
}

// fetch brings the file into f, behind what an earlier run left there.
func fetch(ctx context.Context, s *session, f *os.File, file received) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	progress, done := s.app.progress("fetching " + cleanName(file.Name))
	defer done()
	have := st.Size()
	err = s.Download(ctx, file.Message, f, have, progress)
	if have > 0 && errors.Is(err, client.ErrFileDamaged) {
		// A crash may have left something else than was written.
		err = s.Download(ctx, file.Message, f, 0, progress)
	}
	if err != nil {
		return err
	}
	return f.Truncate(int64(file.Size))
}

// settle gives a file its name, or the first free one with a number.
func settle(root *os.Root, part, name string) (string, error) {
	for n := 1; n <= maxNumbered; n++ {
		free := numbered(name, n)
		err := root.Link(part, free)
		switch {
		case errors.Is(err, fs.ErrExist):
			continue
		case err == nil:
			return free, root.Remove(part)
		}
		// A file system without links, as on many USB sticks: the name is
		// taken by an empty file first.
		f, err := root.OpenFile(free, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if err := f.Close(); err != nil {
			return "", err
		}
		return free, root.Rename(part, free)
	}
	return "", fmt.Errorf("every name like %s is taken", name)
}

// numbered puts a number before the ending of a name; the first has none.
func numbered(name string, n int) string {
	if n == 1 {
		return name
	}
	ending := filepath.Ext(name)
	return fmt.Sprintf("%s (%d)%s", strings.TrimSuffix(name, ending), n, ending)
}

// cleanName makes a name for a file in a directory of the user's from what the
// sender called it: the last part of a path, without what a shell, a terminal
// or a file system takes for something else, never hidden, and of a bounded
// length. What is left of it may be any text, but is only ever a name.
func cleanName(name string) string {
	if at := strings.LastIndexAny(name, `/\`); at >= 0 {
		name = name[at+1:]
	}
	name = strings.Map(func(r rune) rune {
		// IsPrint leaves out controls, and what turns the direction of text.
		if r == utf8.RuneError || !unicode.IsPrint(r) || strings.ContainsRune(`<>:"|?*`, r) {
			return '_'
		}
		return r
	}, name)
	name = strings.TrimRight(strings.TrimLeft(name, ". -~"), ". ")
	if len(name) > maxSavedName {
		ending := filepath.Ext(name)
		if len(ending) > maxExtension {
			ending = ""
		}
		kept := name[:maxSavedName-len(ending)]
		for len(kept) > 0 && !utf8.ValidString(kept) {
			kept = kept[:len(kept)-1]
		}
		name = strings.TrimRight(kept, ". ") + ending
	}
	if name == "" {
		return fallbackName
	}
	return name
}
