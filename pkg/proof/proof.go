// Package proof has the two signatures that client and server check of each
// other: an identity's claim to a name, and the server's word that it stored a
// message. Both halves of each stand here, so that they cannot drift apart.
package proof

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
)

// Labels begin what is signed or hashed, so that one can never be taken for
// another. Append only.
const (
	labelIdentity = "qpc identity proof v1"
	labelDelivery = "qpc delivery proof v1"
)

// Sizes, in bytes.
const (
	IdentitySize = ed25519.SignatureSize
	DeliverySize = sha256.Size + ed25519.SignatureSize
)

// SignIdentity returns the claim of an identity key to a folded username and
// an OPAQUE registration upload (PROTOCOL 7.1):
//
//	Ed25519(identity, label ‖ username ‖ SHA-256(upload))
func SignIdentity(identity ed25519.PrivateKey, username string, upload []byte) []byte {
	return ed25519.Sign(identity, identityMessage(username, upload))
}

// VerifyIdentity reports whether SignIdentity made the proof with the private
// half of an identity key of 32 bytes.
func VerifyIdentity(identity []byte, username string, upload, proof []byte) bool {
	return len(identity) == ed25519.PublicKeySize && ed25519.Verify(identity, identityMessage(username, upload), proof)
}

func identityMessage(username string, upload []byte) []byte {
	digest := sha256.Sum256(upload)
	return append(append([]byte(labelIdentity), username...), digest[:]...)
}

// Delivery is what a delivery proof speaks of.
type Delivery struct {
	Recipient   [32]byte
	Channel     []byte // 16 bytes, or empty for the inbox
	Seq         uint64
	MessageID   [16]byte // zeros for none
	PayloadHash [32]byte // SHA-256
}

// SignDelivery returns the server's word that it stored a message (PROTOCOL
// 7.4):
//
//	H ‖ Ed25519(server key, H), where H = SHA-256(label ‖ recipient 32 ‖
//	  u8 length of channel ‖ channel ‖ seq u64 ‖ message id 16 ‖ payload hash 32)
func SignDelivery(server ed25519.PrivateKey, d Delivery) []byte {
	hash := d.hash()
	return append(hash[:], ed25519.Sign(server, hash[:])...)
}

// VerifyDelivery reports whether SignDelivery made the proof of d with the
// private half of a server key of 32 bytes.
func VerifyDelivery(server []byte, d Delivery, proof []byte) bool {
	hash := d.hash()
	return len(server) == ed25519.PublicKeySize && len(proof) == DeliverySize &&
		[32]byte(proof[:32]) == hash && ed25519.Verify(server, hash[:], proof[32:])
}

func (d Delivery) hash() [32]byte {
	b := make([]byte, 0, len(labelDelivery)+32+1+16+8+16+32)
	b = append(b, labelDelivery...)
	b = append(b, d.Recipient[:]...)
	b = append(b, byte(len(d.Channel)))
	b = append(b, d.Channel...)
	b = binary.BigEndian.AppendUint64(b, d.Seq)
	b = append(b, d.MessageID[:]...)
	b = append(b, d.PayloadHash[:]...)
	return sha256.Sum256(b)
}
