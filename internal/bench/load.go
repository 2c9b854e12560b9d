package main

import (
	"context"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
)

// work is one call, one write: whatever is counted.
type work func(ctx context.Context) error

// load is what became of a number of workers that worked side by side.
type load struct {
	elapsed time.Duration   // from the first beginning to the last end
	times   []time.Duration // of each piece of work, sorted
}

// rate is pieces of work a second.
func (l load) rate() float64 {
	return float64(len(l.times)) / max(l.elapsed, time.Nanosecond).Seconds()
}

// quantile returns how long a piece of work took: 0.5 is the median. It is 0
// when there was none.
func (l load) quantile(q float64) time.Duration {
	if len(l.times) == 0 {
		return 0
	}
	return l.times[min(int(q*float64(len(l.times))), len(l.times)-1)]
}

// hammer lets every worker repeat its work for a time, each without a pause
// and each beside the others. What is under way at the end is finished and
// counted.
func hammer(ctx context.Context, d time.Duration, workers []work) (load, error) {
	start := time.Now()
	return together(ctx, start, workers, func(int) bool { return time.Since(start) < d })
}

// repeat lets one worker repeat its work n times.
func repeat(ctx context.Context, n int, w work) (load, error) {
	return together(ctx, time.Now(), []work{w}, func(done int) bool { return done < n })
}

func together(ctx context.Context, start time.Time, workers []work, more func(done int) bool) (load, error) {
	times := make([][]time.Duration, len(workers))
	group, ctx := errgroup.WithContext(ctx)
	for i, w := range workers {
		group.Go(func() error {
			for more(len(times[i])) {
				begin := time.Now()
				if err := w(ctx); err != nil {
					return err
				}
				times[i] = append(times[i], time.Since(begin))
			}
			return nil
		})
	}
	err := group.Wait()
	l := load{elapsed: time.Since(start), times: slices.Concat(times...)}
	slices.Sort(l.times)
	return l, err
}

// warmed is hammer after a warm-up, so that caches and connections have found
// their sizes. measured is called between the two, when it is not nil.
func warmed(ctx context.Context, d time.Duration, workers []work, measured func()) (load, error) {
	if _, err := hammer(ctx, d/5, workers); err != nil {
		return load{}, err
	}
	if measured != nil {
		measured()
	}
	return hammer(ctx, d, workers)
}

// loadOf is the load of times that were taken elsewhere.
func loadOf(times []time.Duration) load {
	l := load{times: slices.Sorted(slices.Values(times))}
	for _, t := range times {
		l.elapsed += t
	}
	return l
}
