package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"

	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// roleIdle is the first argument of a client with many connections:
	//
	//	bench idle qpc ADDRESS PIN COUNT    session tokens in hex on its input, to an empty line
	//	bench idle bare ADDRESS COUNT
	//
	// It prints "connected" and keeps the connections until its input ends.
	roleIdle = "idle"
	// connected is what it prints.
	connected = "connected"
	// maxIdle bounds the connections of one such client: each has a socket.
	maxIdle = 10000
)

// The goals of memory.
const (
	goalIdleMemory     = 16  // MiB resident, with nobody connected
	goalIdleConnection = 1.2 // of a bare quic-go connection
)

// runIdle is the role.
func runIdle(ctx context.Context, args []string, stdin io.Reader, stdout io.Writer) error {
	usage := errors.New("usage: bench idle qpc ADDRESS PIN COUNT, bench idle bare ADDRESS COUNT")
	if len(args) < 3 {
		return usage
	}
	count, err := strconv.Atoi(args[len(args)-1])
	if err != nil || count < 1 || count > maxIdle {
		return usage
	}
	input := bufio.NewScanner(stdin)
	switch {
	case args[0] == "qpc" && len(args) == 4:
		err = idleQPC(ctx, args[1], args[2], count, input)
	case args[0] == "bare" && len(args) == 3:
		err = idleBare(ctx, args[1], count)
	default:
		err = usage
	}
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(stdout, connected); err != nil {
		return err
	}
	for input.Scan() { // to its end
	}
	return input.Err() // the end of the process ends the connections
}

func idleQPC(ctx context.Context, address, pinText string, count int, input *bufio.Scanner) error {
	pin, err := transport.ParsePin(pinText)
	if err != nil {
		return err
	}
	var tokens [][]byte
	for input.Scan() && input.Text() != "" && len(tokens) < maxIdle {
		token, err := hex.DecodeString(input.Text())
		if err != nil {
			return fmt.Errorf("reading session tokens: %w", err)
		}
		tokens = append(tokens, token)
	}
	if len(tokens) == 0 {
		return errors.New("reading session tokens: there is none")
	}
	for i := range count {
		calls, err := dialQPC(ctx, address, pin, netip.Addr{}, nil)
		if err == nil {
			err = calls.Resume(ctx, tokens[i%len(tokens)])
		}
		if err != nil {
			return fmt.Errorf("opening connection %d: %w", i+1, err)
		}
	}
	return nil
}

func idleBare(ctx context.Context, address string, count int) error {
	for i := range count {
		conn, err := dialBare(ctx, address, nil)
		if err == nil {
			err = bareCall(ctx, conn, 2) // as much as a session handshake
		}
		if err != nil {
			return fmt.Errorf("opening connection %d: %w", i+1, err)
		}
	}
	return nil
}

// idleMemory is the memory of a server: alone, with few connections and with
// many.
type idleMemory struct{ alone, few, lots memory }

// perConnection is what an idle connection adds, in KiB.
func (m idleMemory) perConnection(few, lots int) (ofFew, ofLots float64) {
	of := func(with memory, n int) float64 { return float64(with.resident-m.alone.resident) / float64(n) / 1024 }
	return of(m.few, few), of(m.lots, lots)
}

// measureMemory counts the memory of a server that has nothing to do, on the
// database that the deliveries have left.
func (b *bench) measureMemory(ctx context.Context) error {
	server, err := startBare(ctx, b.bin.bare)
	if err != nil {
		return err
	}
	defer server.kill()
	bare, err := b.idle(ctx, server.process, nil, "bare", server.address)
	if err != nil {
		return err
	}
	if err := server.stop(nil); err != nil {
		return err
	}

	// The sessions survive this restart; nothing is in memory that an earlier
	// load has left there.
	h, err := startHouse(ctx, b.dataDir(), b.bin.qpcd)
	if err != nil {
		return err
	}
	defer h.kill()
	ours, err := b.idle(ctx, h.process, b.tokens, "qpc", h.address, h.pin.String())
	if err != nil {
		return err
	}
	_, bareEach := bare.perConnection(b.plan.few, b.plan.lots)
	fewEach, lotsEach := ours.perConnection(b.plan.few, b.plan.lots)
	b.add(figure{section: "Memory", name: "resident memory of qpcd, nobody connected", value: mebibytes(ours.alone.resident), unit: "MiB", goal: atMost(goalIdleMemory),
		detail: number(mebibytes(ours.alone.anonymous)) + " MiB of it not backed by the program's file",
		limits: []limit{{"bare quic-go server", mebibytes(bare.alone.resident)}}})
	b.add(figure{section: "Memory", name: fmt.Sprintf("the same with %s", plural(b.plan.few, "idle connection")), value: mebibytes(ours.few.resident), unit: "MiB",
		detail: number(fewEach) + " KiB each", limits: []limit{{"bare quic-go server", mebibytes(bare.few.resident)}}})
	b.add(figure{section: "Memory", name: fmt.Sprintf("the same with %s", plural(b.plan.lots, "idle connection")), value: mebibytes(ours.lots.resident), unit: "MiB",
		limits: []limit{{"bare quic-go server", mebibytes(bare.lots.resident)}}})
	b.add(figure{section: "Memory", name: "an idle connection that is logged in", value: lotsEach, unit: "KiB", goal: atMost(goalIdleConnection * bareEach),
		limits: []limit{{"bare quic-go connection", bareEach}}})
	return h.close()
}

// idle measures a server, with connections from another process.
func (b *bench) idle(ctx context.Context, server *process, tokens [][]byte, args ...string) (m idleMemory, err error) {
	if m.alone, err = server.settledMemory(ctx, b.plan.settle); err != nil {
		return m, err
	}
	self, err := os.Executable()
	if err != nil {
		return m, fmt.Errorf("finding this program: %w", err)
	}
	open := func(n int) (*process, error) {
		return startProcessWith(ctx, tokenLines(tokens), func(line string) bool { return line == connected },
			self, append(append([]string{roleIdle}, args...), strconv.Itoa(n))...)
	}
	few, err := open(b.plan.few)
	if err != nil {
		return m, err
	}
	defer few.kill()
	if m.few, err = server.settledMemory(ctx, b.plan.settle); err != nil {
		return m, err
	}
	rest, err := open(b.plan.lots - b.plan.few)
	if err != nil {
		return m, err
	}
	defer rest.kill()
	m.lots, err = server.settledMemory(ctx, b.plan.settle)
	return m, err
}

// tokenLines is the input of the role: the lines and the empty one.
func tokenLines(tokens [][]byte) []byte {
	if tokens == nil {
		return nil
	}
	var b []byte
	for _, token := range tokens {
		b = append(hex.AppendEncode(b, token), '\n')
	}
	return append(b, '\n')
}

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
