// Package storetest is the suite that every client.Store must pass.
package storetest

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quicprochat/qpcd/pkg/client"
)

// Run runs the suite. open opens the store of a name, making it when it is
// new; the same name within one test opens the same store again.
func Run(t *testing.T, open func(t *testing.T, name string) client.Store) {
	t.Run("GetApply", func(t *testing.T) {
		s := open(t, "get")
		defer s.Close()
		if _, err := s.Get(t.Context(), "a"); !errors.Is(err, client.ErrNotStored) {
			t.Errorf("an absent key: %v, want ErrNotStored", err)
		}
		apply(t, s, client.Change{Key: "a", Value: []byte("1")}, client.Change{Key: "b", Value: []byte{}})
		want(t, s, "a", []byte("1"))
		want(t, s, "b", []byte{})
		apply(t, s, client.Change{Key: "a", Value: []byte("2")}, client.Change{Key: "b"}, client.Change{Key: "never"})
		want(t, s, "a", []byte("2"))
		if _, err := s.Get(t.Context(), "b"); !errors.Is(err, client.ErrNotStored) {
			t.Errorf("a removed key: %v, want ErrNotStored", err)
		}
	})
	t.Run("ChangesOfOneKeyInOrder", func(t *testing.T) {
		s := open(t, "order")
		defer s.Close()
		apply(t, s, client.Change{Key: "a", Value: []byte("1")}, client.Change{Key: "a"}, client.Change{Key: "a", Value: []byte("3")})
		want(t, s, "a", []byte("3"))
	})
	t.Run("List", func(t *testing.T) {
		s := open(t, "list")
		defer s.Close()
		for i := range 10 {
			apply(t, s, client.Change{Key: fmt.Sprintf("m/%02d", 9-i), Value: []byte{byte(9 - i)}})
		}
		apply(t, s, client.Change{Key: "l", Value: []byte("x")}, client.Change{Key: "m", Value: []byte("x")}, client.Change{Key: "n/00", Value: []byte("x")})
		for _, test := range []struct {
			prefix, after string
			limit         int
			want          []string
		}{
			{"m/", "", 3, []string{"m/00", "m/01", "m/02"}},
			{"m/", "m/02", 3, []string{"m/03", "m/04", "m/05"}},
			{"m/", "m/07", 3, []string{"m/08", "m/09"}},
			{"m/", "m/09", 3, nil},
			{"q/", "", 3, nil},
			{"n/", "m/99", 3, []string{"n/00"}},
		} {
			entries, err := s.List(t.Context(), test.prefix, test.after, test.limit)
			if err != nil {
				t.Fatal(err)
			}
			var keys []string
			for _, e := range entries {
				keys = append(keys, e.Key)
			}
			if diff := cmp.Diff(test.want, keys); diff != "" {
				t.Errorf("List(%q, %q, %d) (-want +got):\n%s", test.prefix, test.after, test.limit, diff)
			}
		}
	})
	t.Run("Survives", func(t *testing.T) {
		s := open(t, "survives")
		apply(t, s, client.Change{Key: "a", Value: []byte("1")})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, "survives")
		defer s.Close()
		want(t, s, "a", []byte("1"))
	})
	t.Run("ValuesAreCopies", func(t *testing.T) {
		s := open(t, "copies")
		defer s.Close()
		value := []byte("1")
		apply(t, s, client.Change{Key: "a", Value: value})
		value[0] = '2'
		want(t, s, "a", []byte("1"))
		got, _ := s.Get(t.Context(), "a")
		got[0] = '3'
		want(t, s, "a", []byte("1"))
	})
}

func apply(t *testing.T, s client.Store, changes ...client.Change) {
	t.Helper()
	if err := s.Apply(t.Context(), changes...); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, s client.Store, key string, value []byte) {
	t.Helper()
	got, err := s.Get(t.Context(), key)
	if err != nil || string(got) != string(value) {
		t.Errorf("%s: got %q, %v, want %q", key, got, err, value)
	}
}
