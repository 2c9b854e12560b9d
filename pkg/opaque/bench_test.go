package opaque

import (
	"crypto/rand"
	"testing"
)

// The server's half of a login. Known and unknown names are to cost the same.
func BenchmarkServerLogin(b *testing.B) {
	h := newHouse(b, testOnlyConfig())
	known, _ := h.registers("alice", "secret")
	_, ke1, err := newLogin(h.config, rand.Reader, []byte("secret"))
	if err != nil {
		b.Fatal(err)
	}
	for _, bb := range []struct {
		name   string
		record []byte
	}{{"known", known}, {"unknown", nil}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, state, err := h.server.LoginResponse(rand.Reader, bb.record, []byte("alice"), ke1)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := state.Finish(make([]byte, KE3Length)); err == nil {
					b.Fatal("a wrong KE3 passed")
				}
			}
		})
	}
}

func BenchmarkServerRegistration(b *testing.B) {
	h := newHouse(b, testOnlyConfig())
	_, request, err := newRegistration(h.config, rand.Reader, []byte("secret"))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.server.RegistrationResponse(request, []byte("alice")); err != nil {
			b.Fatal(err)
		}
	}
}

// The client's half with the real Argon2id, which is nearly all of it.
func BenchmarkClientLogin(b *testing.B) {
	h := newHouse(b, protocolConfig())
	record, _ := h.registers("alice", "secret")
	b.ReportAllocs()
	for b.Loop() {
		client, ke2, _ := h.asks("alice", "secret", record)
		if _, _, _, _, err := client.Finish(ke2); err != nil {
			b.Fatal(err)
		}
	}
}
