package backup

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/backup"
	"github.com/quicprochat/qpcd/pkg/server"
	"github.com/quicprochat/qpcd/pkg/store"
)

const (
	// restoreSpare is what must stay free beside the restored state: the
	// database makes a log when it is opened.
	restoreSpare = 8 << 20
	// headBytes is how much of a file tells whether it is encrypted.
	headBytes = 32
)

// Restored is what `qpcd restore --json` prints.
type Restored struct {
	File       string   `json:"file"`
	CreatedAt  int64    `json:"created_at"` // Unix seconds, by the clock of the server that was saved
	Version    string   `json:"qpcd_version"`
	ServerName string   `json:"server_name"`
	Blobs      int      `json:"blobs"`
	Damaged    int      `json:"damaged_blobs"`
	OldState   string   `json:"old_state"` // directory; "" where there was none
	Notes      []string `json:"notes"`
}

// Restore puts the state that is saved in a file in the place of the present
// one, which is kept. Nothing is touched before the whole file has proved whole.
func Restore(ctx context.Context, c *command.Call) (err error) {
	file, passphrase, err := openBackup(c)
	if err != nil {
		return err
	}
	defer file.Close()
	dataDir := c.Config.DataDir
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return &store.Refusal{Kind: store.ErrNotWritable, Path: dataDir, Detail: "the data directory cannot be made", Cause: err}
	}
	release, err := server.LockDatabase(dataDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	stage, err := backup.Begin(dataDir)
	if err != nil {
		return err
	}
	swapping := false
	defer func() {
		err = errors.Join(err, stage.Close())
		if err != nil && !swapping {
			err = fmt.Errorf("nothing was restored, the present state is untouched: %w", err)
		}
	}()
	r := &restorer{c: c, dir: stage.Dir()}
	manifest, err := r.extract(file, passphrase)
	if err != nil {
		return err
	}
	if err := r.adopt(ctx, manifest); err != nil {
		return err
	}
	outside, err := r.outside()
	if err != nil {
		return err
	}
	if err := r.giveToOwner(dataDir); err != nil {
		return err
	}
	away := []string{
		backup.Database + "-wal", backup.Database + "-journal", backup.Database + "-shm", filepath.Base(server.BlobDir(dataDir)),
		// An unfinished rotation of the certificate must not go on with another one.
		filepath.Base(c.Config.TLSCert) + ".next", filepath.Base(c.Config.TLSKey) + ".next",
	}
	swapping = true
	old, err := stage.Swap(away, time.Now())
	if err != nil {
		return err
	}
	if err := outside.place(); err != nil {
		return fmt.Errorf("the database is restored, the certificate is not: %w", err)
	}
	return r.tell(manifest, old, outside)
}

// openBackup opens the file and finds its passphrase, if it needs one.
func openBackup(c *command.Call) (file *os.File, passphrase string, err error) {
	file, err = os.Open(c.Args[0])
	if err != nil {
		return nil, "", fmt.Errorf("open the backup: %w", err)
	}
	defer func() {
		if err != nil {
			file.Close()
		}
	}()
	if c.Is(FlagPassphraseFile) {
		passphrase, err = readPassphrase(c.Text(FlagPassphraseFile))
		return file, passphrase, err
	}
	head := make([]byte, headBytes)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, "", fmt.Errorf("read the backup: %w", err)
	}
	if backup.Encrypted(head[:n]) {
		passphrase, err = askPassphrase(c, "Passphrase of the backup: ")
		return file, passphrase, err
	}
	return file, "", nil
}

// restorer makes the new state in dir.
type restorer struct {
	c   *command.Call
	dir string
}

// path is where a part goes. Certificate and key keep their fixed names until
// it is known where the settings want them.
func (r *restorer) path(name string) string {
	if hash := (backup.Part{Name: name}).Blob(); hash != "" {
		return server.BlobPath(r.dir, hash)
	}
	return filepath.Join(r.dir, name)
}

func (r *restorer) extract(file *os.File, passphrase string) (backup.Manifest, error) {
	progress, done := func(int) {}, func() {}
	defer func() { done() }()
	return backup.Extract(file, passphrase, backup.Target{
		Begin: func(h backup.Header) error {
			newest, err := server.NewestSchema()
			switch {
			case err != nil:
				return err
			case h.Schema > newest:
				return fmt.Errorf("%w: its database has schema %d, this program knows %d", backup.ErrNewer, h.Schema, newest)
			}
			if free := store.FreeBytes(r.dir); free-restoreSpare < h.Bytes {
				return fmt.Errorf("%w: the backup needs %s and some room to work, and %s are free in %s; the present state stays beside it",
					store.ErrNoSpace, size(h.Bytes), size(free), filepath.Dir(r.dir))
			}
			if p, d := bar(r.c, h.Bytes, "restoring"); p != nil {
				progress, done = p, d
			}
			return nil
		},
		Create: func(name string, _ int64) (io.WriteCloser, error) {
			path := r.path(name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				return nil, err
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if err != nil {
				return nil, err
			}
			return &partFile{Writer: bufio.NewWriterSize(f, 64<<10), file: f, progress: progress}, nil
		},
	})
}

// partFile is a part that is being written. All are synced together later.
type partFile struct {
	*bufio.Writer
	file     *os.File
	progress func(int)
}

func (p *partFile) Write(b []byte) (int, error) {
	p.progress(len(b))
	return p.Writer.Write(b)
}

func (p *partFile) Close() error { return errors.Join(p.Flush(), p.file.Close()) }

// adopt makes what was extracted a state that a server can start with, by
// opening it as a server does.
func (r *restorer) adopt(ctx context.Context, m backup.Manifest) error {
	for _, part := range m.Parts {
		if part.Damaged {
			if err := os.Remove(r.path(part.Name)); err != nil {
				return fmt.Errorf("leave out a damaged file: %w", err)
			}
		}
	}
	log := slog.New(slog.NewTextHandler(r.c.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := server.AdoptRestored(ctx, r.dir, log); err != nil {
		return fmt.Errorf("the backup's database cannot be used: %w", err)
	}
	return nil
}

// outsideFiles are certificate and key where the settings want them outside the
// data directory, as with a public certificate that another program renews.
type outsideFiles struct {
	files map[string][]byte // path to content, to be written
	kept  []string          // paths that hold something else, which stays
}

// outside takes certificate and key out of the new state, or gives them the
// names that the settings say.
func (r *restorer) outside() (outsideFiles, error) {
	o := outsideFiles{files: map[string][]byte{}}
	inside := true
	for _, path := range []string{r.c.Config.TLSCert, r.c.Config.TLSKey} {
		same, err := sameDir(filepath.Dir(path), r.c.Config.DataDir)
		if err != nil {
			return o, fmt.Errorf("look where %s lies: %w", path, err)
		}
		inside = inside && same
	}
	for name, path := range map[string]string{backup.Certificate: r.c.Config.TLSCert, backup.Key: r.c.Config.TLSKey} {
		from := filepath.Join(r.dir, name)
		content, err := os.ReadFile(from)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return o, fmt.Errorf("read the restored %s: %w", name, err)
		}
		if name == backup.Certificate { // anybody may trust it
			if err := os.Chmod(from, 0o644); err != nil {
				return o, fmt.Errorf("place the restored %s: %w", name, err)
			}
		}
		if inside {
			if err := os.Rename(from, filepath.Join(r.dir, filepath.Base(path))); err != nil {
				return o, fmt.Errorf("name the restored %s: %w", name, err)
			}
			continue
		}
		if err := os.Remove(from); err != nil {
			return o, fmt.Errorf("place the restored %s: %w", name, err)
		}
		present, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			o.files[path] = content
		case err != nil || string(present) != string(content):
			o.kept = append(o.kept, path)
		}
	}
	if len(o.kept) > 0 {
		o.files = nil // a key and a certificate of two pairs are worse than none
	}
	return o, nil
}

// place writes the files that are missing.
func (o outsideFiles) place() error {
	for path, content := range o.files {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(content)
		if err := errors.Join(err, f.Sync(), f.Close(), syncDir(filepath.Dir(path))); err != nil {
			return err
		}
	}
	return nil
}

// sameDir reports whether two paths are one directory. One that is not there is
// none.
func sameDir(a, b string) (bool, error) {
	first, err := os.Stat(a)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second), err
}

// giveToOwner makes the new state belong to whom the data directory belongs to:
// root restores, and the server may run as somebody else.
func (r *restorer) giveToOwner(dataDir string) error {
	info, err := os.Stat(dataDir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || os.Geteuid() != 0 || owner.Uid == 0 && owner.Gid == 0 {
		return nil
	}
	return filepath.WalkDir(r.dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

// tell says what was done, and what follows from it.
func (r *restorer) tell(m backup.Manifest, old string, outside outsideFiles) error {
	report := Restored{
		File: r.c.Args[0], CreatedAt: m.CreatedAt, Version: m.Version, ServerName: m.ServerName, OldState: old, Notes: []string{},
	}
	for _, part := range m.Parts {
		switch {
		case part.Damaged:
			report.Damaged++
		case part.Blob() != "":
			report.Blobs++
		}
	}
	if old != "" {
		report.Notes = append(report.Notes, fmt.Sprintf("The state before is in %s. Remove it when all is well; until then it takes its room.", old))
	}
	report.Notes = append(report.Notes,
		"Everybody must log in again, with the password of that time. Invites are void; make new ones.",
		"What was sent or changed after the backup is lost here: messages, accounts, devices, blocks, bans. Look through `qpcd users list` and `qpcd devices list`: what was removed since is back.",
		"If the key log has grown since, clients that have seen it will say that the server has rewound its log. They are right, and nothing makes them forget; tell your people why.",
		"A group that changed since the backup cannot go on; its members make a new one.",
	)
	if report.ServerName != r.c.Config.ServerName {
		report.Notes = append(report.Notes, fmt.Sprintf("The backup is of a server named %s, the settings say %s: clients and other servers take these for two.", report.ServerName, r.c.Config.ServerName))
	}
	for _, path := range outside.kept {
		report.Notes = append(report.Notes, fmt.Sprintf("%s lies outside the data directory and was left as it is; the backup holds another one.", path))
	}
	if report.Damaged > 0 {
		report.Notes = append(report.Notes, fmt.Sprintf("%d files were damaged already when the backup was made, and are missing.", report.Damaged))
	}
	if r.c.JSON() {
		return command.WriteJSON(r.c.Out, report)
	}
	fmt.Fprintf(r.c.Out, "Restored the backup of %s, made %s by qpcd %s, with %d files.\n\n",
		report.ServerName, time.Unix(report.CreatedAt, 0).Format("2 January 2006, 15:04"), report.Version, report.Blobs)
	for _, note := range report.Notes {
		fmt.Fprintf(r.c.Out, "- %s\n", note)
	}
	_, err := fmt.Fprintln(r.c.Out, "\nNow start the server.")
	return err
}
