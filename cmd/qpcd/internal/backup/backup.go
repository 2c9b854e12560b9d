// Package backup holds the commands `qpcd backup` and `qpcd restore`: they
// gather what a server consists of into one file, and put it back. The form of
// the file and the swap of the states are pkg/backup's.
package backup

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/cmd/qpcd/internal/machine"
	"github.com/quicprochat/qpcd/pkg/backup"
	"github.com/quicprochat/qpcd/pkg/control"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/server"
)

// The names of the flags that go with the commands.
const (
	FlagEncrypt        = "encrypt"
	FlagPassphraseFile = "passphrase-file"
)

const (
	// maxPassphrase bounds a passphrase in bytes.
	maxPassphrase = 1024
	// barEvery is how often the progress is drawn: a terminal behind a slow
	// line must not slow the backup down.
	barEvery = 200 * time.Millisecond
	// finishPatience is how long the server may take to remove its copy. If it
	// does not, it does so later.
	finishPatience = 5 * time.Second
)

// Report is what `qpcd backup --json` prints.
type Report struct {
	File      string `json:"file"`
	Bytes     int64  `json:"bytes"` // of the parts, before compression
	Blobs     int    `json:"blobs"`
	Damaged   int    `json:"damaged_blobs"`
	Schema    int    `json:"schema"`
	CreatedAt int64  `json:"created_at"` // Unix seconds
	Encrypted bool   `json:"encrypted"`
	Running   bool   `json:"server_was_running"`
}

// Backup writes a backup of the server to the file named by the first argument,
// "-" for standard output.
func Backup(ctx context.Context, c *command.Call) error {
	to := c.Args[0]
	if to == "-" {
		switch {
		case c.JSON():
			return command.Misuse{Err: errors.New("standard output takes the backup or JSON, not both")}
		case term.IsTerminal(int(c.Out.Fd())):
			return command.Misuse{Err: errors.New("a backup is not for a terminal; name a file, or send standard output into one")}
		}
	}
	seal, err := sealing(c)
	if err != nil {
		return err
	}
	report, err := write(ctx, c, to, seal)
	if err != nil {
		return err
	}
	if c.JSON() {
		return command.WriteJSON(c.Out, report)
	}
	said := c.Out
	if to == "-" {
		said = os.Stderr
	}
	fmt.Fprintf(said, "%s holds the database, certificate, key and %d files, %s in all.\n", nameOf(to), report.Blobs, size(report.Bytes))
	if report.Damaged > 0 {
		fmt.Fprintf(said, "%d files are damaged on the disk and will be missing after a restore; see `qpcd doctor`.\n", report.Damaged)
	}
	if !report.Encrypted {
		fmt.Fprintln(said, "It is not encrypted and holds the server's keys: keep it where nobody else reads it.")
	}
	return nil
}

func nameOf(file string) string {
	if file == "-" {
		return "The backup"
	}
	return file
}

func write(ctx context.Context, c *command.Call, to string, seal backup.Sealing) (report Report, err error) {
	out, finish, err := create(c, to)
	if err != nil {
		return report, err
	}
	defer func() { err = finish(err) }()
	log := slog.New(slog.NewTextHandler(c.Err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	prepared, running, release, err := prepare(ctx, c, to, log)
	if err != nil {
		return report, err
	}
	defer release()
	sources, total, err := gather(prepared)
	if err != nil {
		return report, err
	}
	version := prepared.Version
	if version == "" {
		version = c.Version
	}
	header := backup.Header{
		Version: version, Schema: int(prepared.Schema), ServerName: prepared.ServerName,
		CreatedAt: time.Now().Unix(), Bytes: total,
	}
	progress, done := bar(c, total, "saving")
	m, err := backup.Write(out, header, sources, seal, progress)
	done()
	if err != nil {
		return report, err
	}
	report = Report{File: to, Schema: header.Schema, CreatedAt: header.CreatedAt, Encrypted: seal.Passphrase != "", Running: running}
	for _, part := range m.Parts {
		report.Bytes += part.Size
		if part.Blob() != "" {
			report.Blobs++
		}
		if part.Damaged {
			report.Damaged++
		}
	}
	return report, nil
}

// create opens the file that the backup goes into, under another name until it
// is whole. finish is to be called with the outcome, and returns the final one.
func create(c *command.Call, to string) (out io.Writer, finish func(error) error, err error) {
	if to == "-" {
		return c.Out, func(err error) error { return err }, nil
	}
	if info, err := os.Lstat(to); err == nil && !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no file; name one that is not there, or a backup to replace", to)
	}
	temp := to + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("remove what an interrupted backup has left: %w", err)
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, nil, fmt.Errorf("make the backup's file: %w", err)
	}
	buffered := bufio.NewWriterSize(f, 256<<10)
	return buffered, func(err error) error {
		if err == nil {
			err = buffered.Flush()
		}
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
		if err == nil {
			err = os.Rename(temp, to)
		}
		if err != nil {
			os.Remove(temp)
			return fmt.Errorf("no backup was made: %w", err)
		}
		return syncDir(filepath.Dir(to))
	}, nil
}

// prepare has a copy of the database made, by the running server or of the
// stopped one. release removes the copy.
func prepare(ctx context.Context, c *command.Call, to string, log *slog.Logger) (p *qpcpb.PrepareBackupResponse, running bool, release func(), err error) {
	if c.Config.ControlSocket != "" {
		stub := qpcpb.NewControlClient(control.Client{Path: c.Config.ControlSocket})
		p, err = stub.PrepareBackup(ctx, &qpcpb.PrepareBackupRequest{})
		if err == nil {
			return p, true, func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishPatience)
				defer cancel()
				if _, err := stub.FinishBackup(ctx, &qpcpb.FinishBackupRequest{Database: p.Database}); err != nil {
					log.Warn("the server keeps its copy for an hour", "error", err)
				}
			}, nil
		}
		if !errors.Is(err, control.ErrNotRunning) {
			return nil, true, nil, err
		}
	}
	// The copy goes beside the backup, where there must be room in any case.
	dir := c.Config.DataDir
	if to != "-" {
		dir = filepath.Dir(to)
	}
	dir, err = os.MkdirTemp(dir, ".qpcd-backup-*")
	if err != nil {
		return nil, false, nil, fmt.Errorf("make room for a copy of the database: %w", err)
	}
	release = func() { os.RemoveAll(dir) }
	p, err = server.CopyStopped(ctx, c.Config, log, filepath.Join(dir, "copy.db"))
	if err != nil {
		release()
		return nil, false, nil, err
	}
	return p, false, release, nil
}

// gather lists what a backup consists of.
func gather(p *qpcpb.PrepareBackupResponse) (sources []backup.Source, total int64, err error) {
	add := func(name, path string, n int64) {
		sources = append(sources, backup.Source{Name: name, Open: func() (io.ReadCloser, int64, error) { return open(path) }})
		total += n
	}
	for _, file := range [][2]string{{backup.Database, p.Database}, {backup.Certificate, p.Certificate}, {backup.Key, p.Key}} {
		info, err := os.Stat(file[1])
		if errors.Is(err, fs.ErrNotExist) && file[0] != backup.Database {
			continue // a server that has never started
		}
		if err != nil {
			return nil, 0, fmt.Errorf("look for the %s: %w", file[0], err)
		}
		add(file[0], file[1], info.Size())
	}
	dirs, err := os.ReadDir(p.BlobDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("list the files: %w", err)
	}
	for _, dir := range dirs {
		if len(dir.Name()) != 2 || !dir.IsDir() {
			continue // unfinished uploads: their senders begin anew
		}
		files, err := os.ReadDir(filepath.Join(p.BlobDir, dir.Name()))
		if err != nil {
			return nil, 0, fmt.Errorf("list the files: %w", err)
		}
		for _, file := range files {
			hash := file.Name()
			if b, err := hex.DecodeString(hash); err != nil || len(b) != 32 || hash != strings.ToLower(hash) || hash[:2] != dir.Name() {
				continue
			}
			info, err := file.Info()
			if err != nil || !info.Mode().IsRegular() {
				continue // gone, or nothing of ours
			}
			add(backup.BlobName(hash), filepath.Join(p.BlobDir, dir.Name(), hash), info.Size())
		}
	}
	return sources, total, nil
}

func open(path string) (io.ReadCloser, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	return f, info.Size(), nil
}

// bar draws the progress of long work on a terminal, and nothing elsewhere.
func bar(c *command.Call, total int64, word string) (progress func(int), done func()) {
	f, ok := c.Err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return nil, func() {}
	}
	b := progressbar.NewOptions64(max(total, 1), progressbar.OptionSetWriter(f), progressbar.OptionSetDescription(word),
		progressbar.OptionShowBytes(true), progressbar.OptionThrottle(barEvery), progressbar.OptionClearOnFinish())
	return func(n int) { _ = b.Add(n) }, func() { _ = b.Finish() }
}

// sealing is how the command line wants a backup to be encrypted.
func sealing(c *command.Call) (backup.Sealing, error) {
	seal := backup.Sealing{WorkFactor: backup.WorkFactor(machine.MemAvailable())}
	var err error
	switch {
	case c.Is(FlagPassphraseFile):
		seal.Passphrase, err = readPassphrase(c.Text(FlagPassphraseFile))
	case c.Is(FlagEncrypt):
		if seal.Passphrase, err = askPassphrase(c, "Passphrase for the backup: "); err != nil {
			return seal, err
		}
		var again string
		if again, err = askPassphrase(c, "The same again: "); err == nil && again != seal.Passphrase {
			err = errors.New("these are two passphrases; nothing was done")
		}
	}
	return seal, err
}

// readPassphrase reads the first line of a file.
func readPassphrase(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the passphrase: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxPassphrase+2))
	if err != nil {
		return "", fmt.Errorf("read the passphrase: %w", err)
	}
	line, _, _ := bytes.Cut(b, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 || len(line) > maxPassphrase {
		return "", fmt.Errorf("the first line of %s is no passphrase: it has %d bytes where 1 to %d are allowed", path, len(line), maxPassphrase)
	}
	return string(line), nil
}

func askPassphrase(c *command.Call, prompt string) (string, error) {
	if !term.IsTerminal(int(c.In.Fd())) {
		return "", command.Misuse{Err: errors.New("nobody is there to be asked for a passphrase; give --passphrase-file FILE")}
	}
	fmt.Fprint(c.Err, prompt)
	b, err := term.ReadPassword(int(c.In.Fd()))
	fmt.Fprintln(c.Err)
	switch {
	case err != nil:
		return "", fmt.Errorf("read the passphrase: %w", err)
	case len(b) == 0 || len(b) > maxPassphrase:
		return "", fmt.Errorf("a passphrase has 1 to %d bytes; nothing was done", maxPassphrase)
	}
	return string(b), nil
}

// syncDir makes a name durable. Some file systems cannot sync a directory and
// say so; the rename is then as durable as it can be.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return errors.Join(err, d.Close())
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d bytes", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%.0f MiB", math.Round(float64(n)/(1<<20)))
}
