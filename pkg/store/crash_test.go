package store_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/quicprochat/qpcd/pkg/store"
)

// Every write acknowledged before a SIGKILL is there afterwards, through several
// kills of the same file, and no -shm file appears.
func TestKilledProcessLosesNothing(t *testing.T) {
	path := testPath(t)
	acknowledged := map[string]bool{}
	for round := range 4 {
		h := startHelper(t, "crash", path, fmt.Sprint("round ", round))
		deadline := time.AfterFunc(150*time.Millisecond+time.Duration(round)*37*time.Millisecond, func() { h.cmd.Process.Kill() })
		for h.out.Scan() {
			acknowledged[h.out.Text()] = true
		}
		deadline.Stop()
		h.cmd.Wait()
		if s := h.errs.String(); s != "" {
			t.Fatalf("round %d: %s", round, s)
		}
		db, err := store.Open(context.Background(), options(path))
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		present := map[string]bool{}
		for _, name := range names(t, db) {
			present[name] = true
		}
		for name := range acknowledged {
			if !present[name] {
				t.Fatalf("round %d: %s was acknowledged and is lost", round, name)
			}
		}
		if round%2 == 0 { // every other round starts from a clean stop
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(acknowledged) == 0 {
		t.Error("nothing was acknowledged, so nothing was tested")
	}
	t.Logf("%d writes acknowledged", len(acknowledged))
}
