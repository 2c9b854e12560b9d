package store_test

import (
	"context"
	"errors"
	"fmt"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/store"
)

// hold occupies the writer until release is called, so that the writes started
// meanwhile share the next commit.
func hold(t *testing.T, db *store.DB) (release func() error) {
	t.Helper()
	started, gate, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- db.Write(context.Background(), func(*store.Tx) error {
			close(started)
			<-gate
			return nil
		})
	}()
	<-started
	return func() error {
		close(gate)
		return <-done
	}
}

// waitQueued waits until n writes wait for the writer.
func waitQueued(db *store.DB, n int) {
	for db.Stats().Queued < n {
		runtime.Gosched()
	}
}

// The batch against a model: whatever mixture of outcomes shares a commit, the
// table holds exactly the effects of the functions that succeeded, in order.
func TestBatchAgainstModel(t *testing.T) {
	outcomes := []string{"succeed", "fail clean", "fail dirty", "panic clean", "panic dirty", "read", "conflict, go on", "conflict, fail", "leak rows", "goexit"}
	db := newDB(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		plan := rapid.SliceOfN(rapid.SampledFrom(outcomes), 1, 12).Draw(rt, "plan")
		release := hold(t, db)
		name := func(i int) string { return fmt.Sprintf("run %d write %02d", run, i) }
		var want, order, hooks []string
		results := make([]error, len(plan))
		exits := slices.Contains(plan, "goexit")
		var wg sync.WaitGroup
		for i, outcome := range plan {
			wg.Go(func() {
				results[i] = db.Write(context.Background(), func(tx *store.Tx) error {
					order = append(order, name(i))
					tx.AfterCommit(func() { hooks = append(hooks, name(i)) })
					dirty := outcome != "fail clean" && outcome != "panic clean" && outcome != "read"
					if dirty {
						if err := insert(tx, name(i)); err != nil {
							return err
						}
					}
					switch outcome {
					case "fail clean", "fail dirty":
						return errTest
					case "panic clean", "panic dirty":
						panic("test")
					case "conflict, go on":
						if err := insert(tx, name(i)); !store.IsUnique(err) {
							return fmt.Errorf("second insert: %v, want a conflict", err)
						}
					case "conflict, fail":
						return insert(tx, name(i))
					case "leak rows":
						rows, err := tx.Query("SELECT id FROM item")
						if err != nil {
							return err
						}
						rows.Next()
					case "goexit":
						runtime.Goexit()
					}
					// It sees those before it, and none that failed.
					var n int
					if err := tx.QueryRow("SELECT count(*) FROM item WHERE name > ? AND name < ?", fmt.Sprintf("run %d ", run), fmt.Sprintf("run %d ~", run)).Scan(&n); err != nil {
						return err
					}
					if !exits && n != len(want)+btoi(dirty) {
						return fmt.Errorf("%d rows seen, want %d", n, len(want)+btoi(dirty))
					}
					if dirty {
						want = append(want, name(i))
					}
					return nil
				})
			})
			waitQueued(db, i+1) // one after the other, so that the order is known
		}
		release()
		wg.Wait()
		got := names(t, db)
		got = slices.DeleteFunc(got, func(n string) bool { return n < fmt.Sprintf("run %d ", run) || n > fmt.Sprintf("run %d ~", run) })
		if exits {
			// The goroutine of the batch is gone: those before it in the batch
			// fail with it, those after it are another batch's.
			at := slices.Index(plan, "goexit")
			for i := range at + 1 {
				if !errors.Is(results[i], store.ErrPanic) {
					rt.Fatalf("write %d (%s) before the exit: %v, want ErrPanic", i, plan[i], results[i])
				}
			}
			for i, err := range results {
				ok := slices.Contains(got, name(i))
				if ok && err != nil || !ok && err == nil && plan[i] != "read" {
					rt.Fatalf("write %d (%s): %v, yet in the table: %v", i, plan[i], err, ok)
				}
			}
			return
		}
		if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
			rt.Fatalf("rows (-want +got):\n%s", diff)
		}
		var wantHooks []string
		for i, outcome := range plan {
			err := results[i]
			switch outcome {
			case "succeed", "read", "conflict, go on", "leak rows":
				wantHooks = append(wantHooks, name(i))
				if err != nil {
					rt.Fatalf("write %d (%s): %v", i, outcome, err)
				}
			case "fail clean", "fail dirty":
				if !errors.Is(err, errTest) {
					rt.Fatalf("write %d (%s): %v, want its own error", i, outcome, err)
				}
			case "panic clean", "panic dirty":
				if !errors.Is(err, store.ErrPanic) {
					rt.Fatalf("write %d (%s): %v, want ErrPanic", i, outcome, err)
				}
			case "conflict, fail":
				if !store.IsUnique(err) {
					rt.Fatalf("write %d (%s): %v, want a conflict", i, outcome, err)
				}
			}
		}
		if diff := cmp.Diff(wantHooks, hooks, cmpopts.EquateEmpty()); diff != "" {
			rt.Fatalf("hooks (-want +got):\n%s", diff)
		}
		if !slices.IsSorted(order) || len(order) != len(plan) {
			rt.Fatalf("functions ran as %q, want each once and in order", order)
		}
	})
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestWritesShareACommit(t *testing.T) {
	db := newDB(t)
	before := db.Stats()
	release := hold(t, db)
	const n = 100
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := db.Write(context.Background(), func(tx *store.Tx) error { return insert(tx, fmt.Sprint(i)) }); err != nil {
				t.Error(err)
			}
		})
	}
	waitQueued(db, n)
	release()
	wg.Wait()
	after := db.Stats()
	// One or two; more where a slow machine cuts batches by time.
	if got := after.Commits - before.Commits; got > n/10 {
		t.Errorf("%d writes took %d commits", n, got)
	}
	if got := len(names(t, db)); got != n {
		t.Errorf("%d rows, want %d", got, n)
	}
}

func TestAfterCommitRunsAfterTheCommitAndBeforeTheAnswer(t *testing.T) {
	db := newDB(t)
	var seen atomic.Int64
	err := db.Write(context.Background(), func(tx *store.Tx) error {
		tx.AfterCommit(func() {
			// Another goroutine's read, since a hook itself must not.
			done := make(chan int)
			go func() { done <- len(names(t, db)) }()
			seen.Store(int64(<-done))
		})
		tx.AfterCommit(func() { panic("a hook's panic changes nothing") })
		return insert(tx, "a")
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := seen.Load(); got != 1 {
		t.Errorf("the hook saw %d rows, want 1", got)
	}
	write(t, db, func(tx *store.Tx) error { return insert(tx, "b") })
}

func TestWriteAndContext(t *testing.T) {
	db := newDB(t)
	t.Run("ended before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		err := db.Write(ctx, func(tx *store.Tx) error { t.Error("it ran"); return nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
	t.Run("ended while waiting", func(t *testing.T) {
		release := hold(t, db)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- db.Write(ctx, func(tx *store.Tx) error { t.Error("it ran"); return nil }) }()
		waitQueued(db, 1)
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
		release()
		write(t, db, func(tx *store.Tx) error { return nil })
	})
	t.Run("ended after it began", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		err := db.Write(ctx, func(tx *store.Tx) error {
			cancel()
			return insert(tx, "told as it is")
		})
		if err != nil {
			t.Errorf("error %v for a write that was committed", err)
		}
		if diff := cmp.Diff([]string{"told as it is"}, names(t, db)); diff != "" {
			t.Errorf("rows (-want +got):\n%s", diff)
		}
	})
	t.Run("queue full", func(t *testing.T) {
		release := hold(t, db)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var stopped atomic.Int64
		const n = 2000 // more than the queue holds
		for range n {
			wg.Go(func() {
				if err := db.Write(ctx, func(tx *store.Tx) error { return nil }); errors.Is(err, context.Canceled) {
					stopped.Add(1)
				}
			})
		}
		waitQueued(db, 1024)
		cancel()
		wg.Wait()
		release()
		if got := stopped.Load(); got != n {
			t.Errorf("%d of %d waiting writes stopped", got, n)
		}
	})
}

func TestCloseAnswersEverybody(t *testing.T) {
	for range 20 {
		db := newDB(t)
		var wg sync.WaitGroup
		var acknowledged atomic.Int64
		for i := range 50 {
			wg.Go(func() {
				for k := range 20 {
					err := db.Write(context.Background(), func(tx *store.Tx) error { return insert(tx, fmt.Sprintf("%d-%d", i, k)) })
					switch {
					case err == nil:
						acknowledged.Add(1)
					case !errors.Is(err, store.ErrClosed):
						t.Error(err)
					}
				}
			})
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if got := int64(len(names(t, open(t, db.Path())))); got != acknowledged.Load() {
			t.Fatalf("%d rows, %d acknowledged", got, acknowledged.Load())
		}
	}
}

// A commit that the system refuses fails all of its writes, and the next one
// works. A file size limit makes the kernel refuse writes to the log, whichever
// the driver.
func TestFailedCommit(t *testing.T) {
	db := newDB(t)
	write(t, db, func(tx *store.Tx) error { return insert(tx, "before") })
	signal.Ignore(syscall.SIGXFSZ)
	defer signal.Reset(syscall.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := old
	limit.Cur = uint64(db.Stats().WALBytes)
	release := hold(t, db)
	hooked := atomic.Bool{}
	var wg sync.WaitGroup
	results := make([]error, 10)
	for i := range results {
		wg.Go(func() {
			results[i] = db.Write(context.Background(), func(tx *store.Tx) error {
				tx.AfterCommit(func() { hooked.Store(true) })
				if i == 7 {
					return errTest
				}
				return insert(tx, fmt.Sprint("lost ", i))
			})
		})
	}
	waitQueued(db, len(results))
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := release(); !errors.Is(err, store.ErrCommit) {
		t.Errorf("the batch's first write: %v, want ErrCommit", err)
	}
	wg.Wait()
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	for i, err := range results {
		if !errors.Is(err, store.ErrCommit) {
			t.Errorf("write %d: %v, want ErrCommit", i, err)
		}
		if store.IsNoSpace(err) {
			t.Errorf("write %d: %v, taken for a full disk", i, err)
		}
	}
	if hooked.Load() {
		t.Error("an after-commit function ran for a failed commit")
	}
	if diff := cmp.Diff([]string{"before"}, names(t, db)); diff != "" {
		t.Errorf("rows after the failure (-want +got):\n%s", diff)
	}
	waitWritable(t, db)
	write(t, db, func(tx *store.Tx) error { return insert(tx, "after") })
	if diff := cmp.Diff([]string{"after", "before"}, names(t, db)); diff != "" {
		t.Errorf("rows after recovery (-want +got):\n%s", diff)
	}
	if got := db.Stats().FailedCommits; got != 1 {
		t.Errorf("%d failed commits counted, want 1", got)
	}
}

// Readers that overlap without end keep the log from starting over; the writer
// must bound it nevertheless.
func TestLogIsBounded(t *testing.T) {
	o := options(testPath(t))
	o.Migrations = benchSchema()
	db, err := store.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				db.Read(context.Background(), func(tx *store.Tx) error {
					// The snapshot is taken here and kept while the writer goes on.
					err := tx.QueryRow("SELECT count(*) FROM msg").Scan(new(int))
					time.Sleep(20 * time.Millisecond)
					return err
				})
			}
		})
	}
	var largest int64
	for i := range 60 {
		write(t, db, func(tx *store.Tx) error {
			_, err := tx.Exec("INSERT OR REPLACE INTO msg (id, body) VALUES (?, ?)", i%3, make([]byte, 1<<20))
			return err
		})
		largest = max(largest, db.Stats().WALBytes)
	}
	close(stop)
	wg.Wait()
	if limit := int64(21 << 20); largest > limit {
		t.Errorf("the log grew to %d bytes, want at most %d", largest, limit)
	}
	t.Logf("largest log: %d bytes", largest)
}
