package localstore_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/client/localstore"
	"github.com/quicprochat/qpcd/pkg/client/storetest"
	"github.com/quicprochat/qpcd/pkg/store"
)

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	storetest.Run(t, func(t *testing.T, name string) client.Store {
		s, err := localstore.Open(t.Context(), filepath.Join(dir, name, "profile.db"), nil)
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}

func TestOneProcessAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alice", "profile.db")
	s, err := localstore.Open(t.Context(), path, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := localstore.Open(t.Context(), path, nil); !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second open: %v, want ErrLocked", err)
	}
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != want {
			t.Errorf("%s has mode %o, want %o", name, mode, want)
		}
	}
}
