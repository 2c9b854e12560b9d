package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How a restored state takes the place of the one that is there, all within the
// data directory, which may be a mount point and has no siblings then:
//
//	restore/                  the new state, while it is made
//	restore.json              the plan: from here on the restore is decided
//	before-restore-DATE-TIME/ the old state, which stays
//
// The plan is made durable once the new state is. Then each entry moves: the
// old one away, the new one into its place. Whoever starts after a crash finds
// a plan and finishes it, or finds none and removes restore/. Every step can be
// done again.
const (
	stageDir  = "restore"
	planFile  = "restore.json"
	oldPrefix = "before-restore-"
	oldTime   = "20060102-150405"
)

// ErrBusy: another process restores, or creates the database, in this
// directory.
var ErrBusy = errors.New("a restore is under way in the data directory; wait for its end")

// plan is the content of planFile.
type plan struct {
	Old  string   `json:"old"`  // the directory of the old state
	Away []string `json:"away"` // what has no successor
	New  []string `json:"new"`  // what comes, and what is there goes
}

// A Stage is a data directory that is being restored. No other process can
// start one meanwhile, nor finish it.
type Stage struct {
	data string
	lock *os.File

	// testOnlyStep, when set, is called before each step that changes the
	// directory, and may end the work there.
	testOnlyStep func(name string) error
}

// Begin locks a data directory, which must exist, finishes or removes what an
// interrupted restore has left in it, and makes an empty directory for the new
// state. The caller makes sure that no server runs. Close the Stage.
func Begin(dataDir string) (*Stage, error) {
	s, err := lockDir(dataDir)
	if err != nil {
		return nil, err
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := os.Mkdir(s.Dir(), 0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("prepare the restore: %w", err), s.Close())
	}
	return s, nil
}

// Recover finishes a restore that was interrupted after it was decided, or
// removes what one left that was interrupted before. It reports whether the
// data directory now holds a restored state that it did not hold before. To be
// called before the database is opened.
func Recover(dataDir string) (finished bool, err error) {
	planned, err := exists(filepath.Join(dataDir, planFile))
	if err != nil {
		return false, fmt.Errorf("look for an interrupted restore: %w", err)
	}
	staged, err := exists(filepath.Join(dataDir, stageDir))
	if err != nil {
		return false, fmt.Errorf("look for an interrupted restore: %w", err)
	}
	if !planned && !staged {
		return false, nil
	}
	s, err := lockDir(dataDir)
	if err != nil {
		return false, err
	}
	return planned, errors.Join(s.recover(), s.Close())
}

func lockDir(dataDir string) (*Stage, error) {
	lock, err := os.Open(dataDir)
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, errors.Join(err, lock.Close())
	}
	return &Stage{data: dataDir, lock: lock}, nil
}

// Dir is the directory for the new state: the files as they shall lie in the
// data directory.
func (s *Stage) Dir() string { return filepath.Join(s.data, stageDir) }

// Close ends the work on the data directory. What was not swapped is removed.
func (s *Stage) Close() error {
	_, err := os.Lstat(filepath.Join(s.data, planFile))
	if errors.Is(err, fs.ErrNotExist) {
		err = os.RemoveAll(s.Dir())
	}
	return errors.Join(err, s.lock.Close())
}

// Swap makes the new state that of the data directory. Entries of the old state
// named in away go away as well, where they are. It returns the directory that
// keeps the old state, "" where there was none. When it fails before the new
// state is decided on, the old one is untouched; after that [Recover] goes on.
func (s *Stage) Swap(away []string, now time.Time) (old string, err error) {
	if err := syncTree(s.Dir()); err != nil {
		return "", fmt.Errorf("sync the new state: %w", err)
	}
	entries, err := os.ReadDir(s.Dir())
	if err != nil {
		return "", fmt.Errorf("list the new state: %w", err)
	}
	p := plan{Old: oldPrefix + now.UTC().Format(oldTime)}
	for n := 2; ; n++ {
		taken, err := exists(filepath.Join(s.data, p.Old))
		if err != nil {
			return "", fmt.Errorf("choose a name for the old state: %w", err)
		}
		if !taken {
			break
		}
		p.Old = fmt.Sprintf("%s%s-%d", oldPrefix, now.UTC().Format(oldTime), n)
	}
	for _, e := range entries {
		p.New = append(p.New, e.Name())
	}
	for _, name := range away {
		if !slices.Contains(p.New, name) {
			p.Away = append(p.Away, name)
		}
	}
	if err := s.movable(p); err != nil {
		return "", err
	}
	if err := s.decide(p); err != nil {
		return "", fmt.Errorf("decide the restore: %w", err)
	}
	if err := s.carryOut(p); err != nil {
		return "", err
	}
	old = filepath.Join(s.data, p.Old)
	if kept, err := exists(old); err != nil || !kept {
		return "", err
	}
	return old, nil
}

// movable refuses a plan of which an entry could not move: one on another file
// system than the data directory.
func (s *Stage) movable(p plan) error {
	var home, there unix.Stat_t
	if err := unix.Stat(s.data, &home); err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	for _, name := range slices.Concat(p.Away, p.New) {
		path := filepath.Join(s.data, name)
		switch err := unix.Lstat(path, &there); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return fmt.Errorf("look at %s: %w", path, err)
		case there.Dev != home.Dev:
			return fmt.Errorf("%s is a file system of its own and cannot be moved aside; empty and unmount it first", path)
		}
	}
	return nil
}

// step marks a place where tests may end the work.
func (s *Stage) step(name string) error {
	if s.testOnlyStep != nil {
		return s.testOnlyStep(name)
	}
	return nil
}

// decide makes the plan durable.
func (s *Stage) decide(p plan) (err error) {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := s.step("write plan"); err != nil {
		return err
	}
	temp := filepath.Join(s.Dir(), planFile)
	if err := writeFile(temp, b); err != nil {
		return err
	}
	if err := s.step("decide"); err != nil {
		return err
	}
	return s.rename(temp, filepath.Join(s.data, planFile))
}

// carryOut does what is left of a plan.
func (s *Stage) carryOut(p plan) error {
	// What has no successor goes first: a log must be gone before the database
	// that it does not belong to comes.
	for _, name := range append(slices.Clone(p.Away), p.New...) {
		if err := s.move(p, name); err != nil {
			return fmt.Errorf("put the restored %s into its place (the next start, or the next restore, goes on with it): %w", name, err)
		}
	}
	if err := s.step("forget the plan"); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(s.data, planFile)); err != nil {
		return fmt.Errorf("end the restore: %w", err)
	}
	if err := s.lock.Sync(); err != nil {
		return fmt.Errorf("end the restore: %w", err)
	}
	if err := s.step("remove what is empty"); err != nil {
		return err
	}
	if err := os.RemoveAll(s.Dir()); err != nil {
		return fmt.Errorf("end the restore: %w", err)
	}
	return nil
}

// move gives one entry its place. One of the new ones that does not wait in
// restore/ any more has come already; until it has, what stands in its place is
// old.
func (s *Stage) move(p plan, name string) error {
	place, next := filepath.Join(s.data, name), filepath.Join(s.Dir(), name)
	waits, err := exists(next)
	if err != nil {
		return err
	}
	if !waits && slices.Contains(p.New, name) {
		return nil
	}
	there, err := exists(place)
	if err != nil {
		return err
	}
	if there {
		old := filepath.Join(s.data, p.Old)
		if err := os.Mkdir(old, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.step("keep " + name); err != nil {
			return err
		}
		if err := s.rename(place, filepath.Join(old, name)); err != nil {
			return err
		}
	}
	if !waits {
		return nil
	}
	if err := s.step("place " + name); err != nil {
		return err
	}
	return s.rename(next, place)
}

// rename moves a file and makes that durable.
func (s *Stage) rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	for _, dir := range []string{filepath.Dir(to), filepath.Dir(from)} {
		if err := syncFile(dir); err != nil {
			return err
		}
	}
	return nil
}

// recover finishes or removes what an interrupted restore has left.
func (s *Stage) recover() error {
	b, err := os.ReadFile(filepath.Join(s.data, planFile))
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.RemoveAll(s.Dir()); err != nil {
			return fmt.Errorf("remove what an interrupted restore has left: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the plan of an interrupted restore: %w", err)
	}
	var p plan
	err = json.Unmarshal(b, &p)
	for _, name := range slices.Concat(p.Away, p.New, []string{p.Old}) {
		if name == "" || name != filepath.Base(name) || name == "." || name == ".." {
			err = errors.Join(err, fmt.Errorf("it names %q", name))
		}
	}
	if err == nil && !strings.HasPrefix(p.Old, oldPrefix) {
		err = fmt.Errorf("it keeps the old state in %q", p.Old)
	}
	if err != nil {
		return fmt.Errorf("the plan of an interrupted restore, %s, makes no sense: %w", filepath.Join(s.data, planFile), err)
	}
	return s.carryOut(p)
}

// Leftovers returns the directories that keep old states from earlier restores.
func Leftovers(dataDir string) ([]string, error) {
	return filepath.Glob(filepath.Join(dataDir, oldPrefix+"*"))
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// writeFile writes a file durably; its name is made durable by who renames it.
func writeFile(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncTree makes everything below a directory durable, names last.
func syncTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() {
			dirs = append(dirs, path)
			return nil
		}
		return syncFile(path)
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs)
	for _, d := range dirs {
		if err := syncFile(d); err != nil {
			return err
		}
	}
	return nil
}
