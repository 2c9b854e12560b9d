package main

import "time"

// payloadBytes is a message of every figure: a short text in its envelope, as
// the goals have it.
const payloadBytes = 256

// pageBytes is what the disk writes at the least.
const pageBytes = 4096

// many is the concurrent half of every figure.
const many = 32

// fetchPage is the most messages that one answer holds (PROTOCOL 7.5).
const fetchPage = 500

// plan is how much is measured. Rates run for a time, so that a slow machine
// takes no longer than a fast one; everything else is counted.
type plan struct {
	quick      bool          // shows that the harness works, and no more
	rate       time.Duration // of each rate, after a warm-up of a fifth
	senders    int           // the concurrent half; many in a whole run
	traced     time.Duration // of the rates under strace, which slows them
	latencies  int           // messages, one at a time
	handshakes int           // of each kind, at handshakePace
	logins     int
	few, lots  int           // idle connections
	settle     time.Duration // for how long memory must stay the same
	starts     int           // of each kind
}

func wholePlan() plan {
	return plan{
		rate: 4 * time.Second, senders: many, traced: 1500 * time.Millisecond, latencies: 4000,
		handshakes: 75, logins: 30, few: 100, lots: 1000, settle: time.Second, starts: 7,
	}
}

func quickPlan() plan {
	return plan{
		quick: true, rate: 100 * time.Millisecond, senders: 3, traced: 100 * time.Millisecond, latencies: 20,
		handshakes: 3, logins: 2, few: 3, lots: 20, settle: 100 * time.Millisecond, starts: 1,
	}
}
