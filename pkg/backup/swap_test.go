package backup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var noon = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// lay writes files below a directory.
func lay(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// tree reads all files below a directory.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		files[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

var (
	oldState = map[string]string{"qpcd.db": "old", "qpcd.db-wal": "old log", "blobs/aa/1": "old blob", "server-key.der": "old key", "notes": "the owner's"}
	newState = map[string]string{"qpcd.db": "new", "blobs/bb/2": "new blob", "server-key.der": "new key", "server-cert.der": "new"}
	away     = []string{"qpcd.db-wal", "qpcd.db-journal", "qpcd.db"}
	kept     = filepath.Join("before-restore-20260701-120000")
	swapped  = map[string]string{
		"qpcd.db": "new", "blobs/bb/2": "new blob", "server-key.der": "new key", "server-cert.der": "new", "notes": "the owner's",
		kept + "/qpcd.db": "old", kept + "/qpcd.db-wal": "old log", kept + "/blobs/aa/1": "old blob", kept + "/server-key.der": "old key",
	}
)

func TestSwap(t *testing.T) {
	data := t.TempDir()
	lay(t, data, oldState)
	s, err := Begin(data)
	if err != nil {
		t.Fatal(err)
	}
	lay(t, s.Dir(), newState)
	if _, err := Begin(data); !errors.Is(err, ErrBusy) {
		t.Errorf("a second restore: %v", err)
	}
	if _, err := Recover(data); !errors.Is(err, ErrBusy) {
		t.Errorf("a start meanwhile: %v", err)
	}
	old, err := s.Swap(away, noon)
	if err != nil || old != filepath.Join(data, kept) {
		t.Fatalf("%q, %v", old, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(swapped, tree(t, data)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if finished, err := Recover(data); finished || err != nil {
		t.Errorf("%v, %v", finished, err)
	}
}

func TestSwapIntoNothing(t *testing.T) {
	data := t.TempDir()
	s, err := Begin(data)
	if err != nil {
		t.Fatal(err)
	}
	lay(t, s.Dir(), newState)
	if old, err := s.Swap(away, noon); err != nil || old != "" {
		t.Fatalf("%q, %v", old, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(newState, tree(t, data)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestGivenUp(t *testing.T) {
	data := t.TempDir()
	lay(t, data, oldState)
	s, err := Begin(data)
	if err != nil {
		t.Fatal(err)
	}
	lay(t, s.Dir(), newState)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(oldState, tree(t, data)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

var errPower = errors.New("the power fails")

// The power fails before each step, and while that is mended, before each step
// again: the state is the old one, or the new one, whole.
func TestPowerFails(t *testing.T) {
	var steps []string
	for n := 0; ; n++ {
		for m := -1; ; m++ {
			data := t.TempDir()
			lay(t, data, oldState)
			s, err := Begin(data)
			if err != nil {
				t.Fatal(err)
			}
			lay(t, s.Dir(), newState)
			done, decided := []string{}, false
			s.testOnlyStep = func(name string) error {
				if len(done) == n {
					return errPower
				}
				done = append(done, name)
				decided = decided || name == "decide"
				return nil
			}
			_, err = s.Swap(away, noon)
			if err != nil && !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			ended := err == nil
			s.lock.Close() // as the kernel does for a dead process
			if ended {
				if len(steps) < 8 {
					t.Fatalf("only %v were tried", steps)
				}
				return
			}
			interrupted := false
			if m >= 0 && decided {
				again, err := lockDir(data)
				if err != nil {
					t.Fatal(err)
				}
				count := 0
				again.testOnlyStep = func(string) error {
					if count == m {
						interrupted = true
						return errPower
					}
					count++
					return nil
				}
				if err := again.recover(); err != nil && !errors.Is(err, errPower) {
					t.Fatal(err)
				}
				again.lock.Close()
			}
			finished, err := Recover(data)
			if err != nil {
				t.Fatalf("after %v: %v", done, err)
			}
			want := oldState
			if decided {
				want = swapped
			}
			if diff := cmp.Diff(want, tree(t, data)); diff != "" {
				t.Fatalf("the power failed after %v and %d (-want +got)\n%s", done, m, diff)
			}
			if open := decided && !slices.Contains(done, "forget the plan"); m < 0 && finished != open {
				t.Errorf("after %v: finished %v", done, finished)
			}
			steps = done
			if !interrupted && m >= 0 || !decided {
				break
			}
		}
	}
}

func TestPlansThatLeadOut(t *testing.T) {
	for _, plan := range []string{
		`{"old":"before-restore-1","new":["../x"]}`, `{"old":"before-restore-1","away":[""]}`, `{"old":"/tmp/x","new":["a"]}`,
		`{"old":"blobs","new":["a"]}`, `{"old":"before-restore-1","new":[".."]}`, `{`,
	} {
		data := t.TempDir()
		lay(t, data, map[string]string{planFile: plan, "qpcd.db": "mine"})
		if _, err := Recover(data); err == nil || !strings.Contains(err.Error(), planFile) {
			t.Errorf("%s: %v", plan, err)
		}
		if got := tree(t, data); got["qpcd.db"] != "mine" {
			t.Errorf("%s: %v", plan, got)
		}
	}
}

func TestLeftovers(t *testing.T) {
	data := t.TempDir()
	lay(t, data, swapped)
	if got, err := Leftovers(data); err != nil || !slices.Equal(got, []string{filepath.Join(data, kept)}) {
		t.Errorf("%v, %v", got, err)
	}
}
