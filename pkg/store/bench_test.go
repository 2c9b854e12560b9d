package store_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/store"
)

// payloadBytes is the size of a benchmark row's blob: a short message.
const payloadBytes = 256

const (
	insertPart = "INSERT INTO msg (body) VALUES (?)"
	selectPart = "SELECT body FROM msg WHERE id = ?"
)

func benchDB(b *testing.B) *store.DB {
	b.Helper()
	o := options(filepath.Join(b.TempDir(), "test.db"))
	o.Migrations = benchSchema()
	db, err := store.Open(context.Background(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	return db
}

// BenchmarkDisk is the bare limit of the others: what the kernel needs to append
// a page to a file and sync it, from one writer and from 32 on as many files.
func BenchmarkDisk(b *testing.B) {
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			dir := b.TempDir()
			parallel(b, n, func(worker int) func(i int) error {
				f, err := os.Create(filepath.Join(dir, fmt.Sprint(worker)))
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { f.Close() })
				page := make([]byte, 4096)
				var at int64
				return func(int) error {
					if _, err := f.WriteAt(page, at); err != nil {
						return err
					}
					at += int64(len(page))
					return unix.Fdatasync(int(f.Fd()))
				}
			})
		})
	}
}

// BenchmarkWrite1 and 32 are durable single-row writes from that many
// goroutines.
func BenchmarkWrite1(b *testing.B)  { benchWrite(b, 1, 0) }
func BenchmarkWrite32(b *testing.B) { benchWrite(b, 32, 0) }

// BenchmarkWrite32Hostile is Write32 with eight more goroutines whose writes all
// fail after their first statement.
func BenchmarkWrite32Hostile(b *testing.B) { benchWrite(b, 32, 8) }

func benchWrite(b *testing.B, n, hostile int) {
	db := benchDB(b)
	ctx := context.Background()
	body := make([]byte, payloadBytes)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range hostile {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				db.Write(ctx, func(tx *store.Tx) error {
					if _, err := tx.Exec(insertPart, body); err != nil {
						return err
					}
					return errTest
				})
			}
		})
	}
	before := db.Stats()
	parallel(b, n, func(int) func(int) error {
		return func(int) error {
			return db.Write(ctx, func(tx *store.Tx) error {
				_, err := tx.Exec(insertPart, body)
				return err
			})
		}
	})
	close(stop)
	wg.Wait()
	after := db.Stats()
	b.ReportMetric(float64(after.Writes-before.Writes)/float64(after.Commits-before.Commits), "writes/commit")
}

// BenchmarkRead is single-row reads by key, each its own snapshot.
func BenchmarkRead(b *testing.B) {
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			db := benchDB(b)
			ctx := context.Background()
			const rows = 1000
			write(b, db, func(tx *store.Tx) error {
				for range rows {
					if _, err := tx.Exec(insertPart, make([]byte, payloadBytes)); err != nil {
						return err
					}
				}
				return nil
			})
			parallel(b, n, func(int) func(int) error {
				var body []byte
				return func(i int) error {
					return db.Read(ctx, func(tx *store.Tx) error {
						return tx.QueryRow(selectPart, i%rows+1).Scan(&body)
					})
				}
			})
		})
	}
}

// parallel shares b.N calls among n goroutines, each with a function of its own,
// and reports calls a second.
func parallel(b *testing.B, n int, worker func(int) func(i int) error) {
	fns := make([]func(int) error, n)
	for i := range fns {
		fns[i] = worker(i)
	}
	var next atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for _, fn := range fns {
		wg.Go(func() {
			for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
				if err := fn(int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}
