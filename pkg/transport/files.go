package transport

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	privateMode fs.FileMode = 0o600 // keys and secrets: the daemon alone
	publicMode  fs.FileMode = 0o644 // certificates: anybody may trust them
)

// A Secret is the seed of everything a server must keep over a restart: TLS
// session ticket keys, address tokens and stateless resets. Who knows it can
// decrypt 0-RTT data and cut connections, but no other traffic.
type Secret [32]byte

// readBounded reads a file of at most maxCertificateFile bytes.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCertificateFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxCertificateFile {
		return nil, fmt.Errorf("%s is larger than %d KiB", path, maxCertificateFile>>10)
	}
	return data, nil
}

// writeAtomic makes a file appear whole or not at all, also when the power
// fails: temporary file, fsync, rename, fsync of the directory. The temporary
// name is fixed, so that what a crash leaves behind is overwritten and never
// piles up.
func writeAtomic(path string, data []byte, mode fs.FileMode) (err error) {
	temp := path + ".new"
	// A left-over is removed, not reopened: it may have another mode.
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp)
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(mode) // whatever the umask says
	}
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", temp, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	// Some file systems cannot sync a directory and say so; the rename is
	// then as durable as it can be.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
