package client_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// grep returns the first file below a directory that holds the text.
func grep(t *testing.T, dir, text string) (found string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			found = path
		}
		return err
	})
	if err != nil || files == 0 {
		t.Fatalf("reading %s: %d files, %v", dir, files, err)
	}
	return found
}
