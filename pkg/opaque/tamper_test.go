package opaque

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"testing"
)

// flow is one registration and login with a hook on every message that travels
// or is stored.
type flow struct {
	h *house
	// record, if set, spares the registration.
	record []byte
	// change returns what arrives in place of the message.
	change func(message string, b []byte) []byte
}

func (f flow) pass(message string, b []byte) []byte {
	if f.change == nil {
		return b
	}
	return f.change(message, bytes.Clone(b))
}

// run returns nil if both sides believe the login, each with the same key.
func (f flow) run() error {
	c, server, id, password := f.h.config, f.h.server, []byte("alice"), []byte("secret")
	record := f.record
	if record == nil {
		registration, request, err := newRegistration(c, rand.Reader, password)
		if err != nil {
			return err
		}
		response, err := server.RegistrationResponse(f.pass("registration request", request), id)
		if err != nil {
			return err
		}
		upload, _, err := registration.Finish(f.pass("registration response", response))
		if err != nil {
			return err
		}
		record = f.pass("registration upload", upload)
		if err := server.CheckRegistrationUpload(record); err != nil {
			return err
		}
	}
	login, ke1, err := newLogin(c, rand.Reader, password)
	if err != nil {
		return err
	}
	ke2, state, err := server.LoginResponse(rand.Reader, record, id, f.pass("KE1", ke1))
	if err != nil {
		return err
	}
	ke3, clientKey, _, _, err := login.Finish(f.pass("KE2", ke2))
	if err != nil {
		return err
	}
	serverKey, err := state.Finish(f.pass("KE3", ke3))
	if err != nil {
		return err
	}
	if !bytes.Equal(clientKey, serverKey) {
		return errors.New("two different keys")
	}
	return nil
}

var messages = []struct {
	name     string
	length   int
	login    bool
	elements []int // offsets of the group elements
}{
	{"registration request", RegistrationRequestLength, false, []int{0}},
	{"registration response", RegistrationResponseLength, false, []int{0, 32}},
	{"registration upload", RegistrationUploadLength, false, []int{0}},
	{"KE1", KE1Length, true, []int{0, 64}},
	{"KE2", KE2Length, true, []int{0, 224}},
	{"KE3", KE3Length, true, nil},
}

// flowOf is a flow in which the message travels, with as little before it as
// possible.
func flowOf(h *house, login bool, record []byte, change func(message string, b []byte) []byte) flow {
	if !login {
		record = nil
	}
	return flow{h, record, change}
}

// A flipped bit in any byte of any field of any message, or of the stored
// record, ends in one of the two errors and never in a session.
func TestTamperEveryByte(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	if err := (flow{h: h}).run(); err != nil {
		t.Fatalf("untouched: %v", err)
	}
	for _, m := range messages {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for at := 0; at < m.length; at += tamperStride {
				err := flowOf(h, m.login, record, func(name string, b []byte) []byte {
					if name == m.name {
						b[at] ^= 1 << (at % 8)
					}
					return b
				}).run()
				if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrAuthentication) {
					t.Errorf("byte %d flipped: %v", at, err)
				}
			}
		})
	}
}

func TestEveryOtherLength(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	for _, m := range messages {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			for _, n := range []int{0, 1, m.length / 2, m.length - 1, m.length + 1, 2 * m.length, 1 << 16} {
				err := flowOf(h, m.login, record, func(name string, b []byte) []byte {
					if name == m.name {
						return append(b, make([]byte, 1<<16)...)[:n]
					}
					return b
				}).run()
				if !errors.Is(err, ErrMalformed) {
					t.Errorf("%d bytes: %v", n, err)
				}
			}
		})
	}
}

// Every place that holds a group element refuses what RFC 9496 and RFC 9807 say
// it must.
func TestInvalidElements(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	bad := badElements(t)
	for _, m := range messages {
		for _, at := range m.elements {
			t.Run(fmt.Sprintf("%s at %d", m.name, at), func(t *testing.T) {
				t.Parallel()
				for i, e := range bad {
					err := flowOf(h, m.login, record, func(name string, b []byte) []byte {
						if name == m.name {
							copy(b[at:], e.bytes)
						}
						return b
					}).run()
					if !errors.Is(err, ErrMalformed) {
						t.Errorf("%s (%d): %v", e.reason, i, err)
					}
				}
			})
		}
	}
}

// Zero and anything from the group order up is no scalar.
func TestInvalidScalars(t *testing.T) {
	const order = "edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010"
	below, at, beyond := unhex(t, order), unhex(t, order), unhex(t, order)
	below[0]--
	beyond[0]++
	for name, tt := range map[string]struct {
		bytes []byte
		ok    bool
	}{
		"one":                  {append([]byte{1}, make([]byte, 31)...), true},
		"the order less one":   {below, true},
		"zero":                 {make([]byte, 32), false},
		"the order":            {at, false},
		"the order and one":    {beyond, false},
		"one with the top bit": {append(append([]byte{1}, make([]byte, 30)...), 0x80), false},
		"all ones":             {bytes.Repeat([]byte{0xff}, 32), false},
		"a byte short of one":  {append([]byte{1}, make([]byte, 30)...), false},
		"a byte more than one": {append([]byte{1}, make([]byte, 32)...), false},
		"no bytes":             {nil, false},
	} {
		if _, err := decodeScalar(tt.bytes); (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
