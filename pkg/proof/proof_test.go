package proof_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"testing"

	"github.com/quicprochat/qpcd/pkg/proof"
)

func TestIdentity(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	public := key.Public().(ed25519.PublicKey)
	upload := []byte("upload")
	p := proof.SignIdentity(key, "alice", upload)
	if !proof.VerifyIdentity(public, "alice", upload, p) {
		t.Fatal("a good proof is refused")
	}
	other := ed25519.NewKeyFromSeed(append(make([]byte, 31), 1)).Public().(ed25519.PublicKey)
	for name, ok := range map[string]bool{
		"other name":   proof.VerifyIdentity(public, "alicf", upload, p),
		"other upload": proof.VerifyIdentity(public, "alice", []byte("uploae"), p),
		"other key":    proof.VerifyIdentity(other, "alice", upload, p),
		"no key":       proof.VerifyIdentity(nil, "alice", upload, p),
		"no proof":     proof.VerifyIdentity(public, "alice", upload, nil),
	} {
		if ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The layout of PROTOCOL 7.4, spelled out by hand.
func TestDeliveryLayout(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	public := key.Public().(ed25519.PublicKey)
	d := proof.Delivery{Channel: []byte("0123456789abcdef"), Seq: 258, PayloadHash: sha256.Sum256([]byte("hi"))}
	d.Recipient[0], d.MessageID[15] = 7, 9
	p := proof.SignDelivery(key, d)
	preimage := "qpc delivery proof v1" + "\x07" + string(make([]byte, 31)) + "\x10" + "0123456789abcdef" +
		"\x00\x00\x00\x00\x00\x00\x01\x02" + string(make([]byte, 15)) + "\x09" + string(d.PayloadHash[:])
	if want := sha256.Sum256([]byte(preimage)); hex.EncodeToString(p[:32]) != hex.EncodeToString(want[:]) {
		t.Errorf("hash %x, want %x", p[:32], want)
	}
	if !proof.VerifyDelivery(public, d, p) {
		t.Fatal("a good proof is refused")
	}
	for i := range p {
		p[i] ^= 1
		if proof.VerifyDelivery(public, d, p) {
			t.Errorf("accepted with byte %d changed", i)
		}
		p[i] ^= 1
	}
	d.Channel = nil
	if proof.VerifyDelivery(public, d, p) {
		t.Error("accepted for another channel")
	}
}
