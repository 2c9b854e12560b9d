package opaque

import (
	"crypto/sha512"
	"encoding/binary"
	"hash"
)

// transcript starts the hash over the preamble of RFC 9807, section 6.4.2.1.
// The caller reads the hash of the preamble and then writes the server MAC, so
// that one hash serves both MACs.
func (c config) transcript(clientPublicKey, ke1, serverPublicKey, credentialResponse, serverNonce, serverKeyShare []byte) hash.Hash {
	clientID, serverID := c.clientID(clientPublicKey), c.serverID(serverPublicKey)
	h := sha512.New()
	for _, part := range [][]byte{
		[]byte(labelPreamble),
		lengthPrefix(c.context), c.context,
		lengthPrefix(clientID), clientID,
		ke1,
		lengthPrefix(serverID), serverID,
		credentialResponse, serverNonce, serverKeyShare,
	} {
		h.Write(part)
	}
	return h
}

// handshake is the outcome of the key exchange, the same on both sides.
type handshake struct {
	serverMAC  []byte
	clientMAC  []byte
	sessionKey []byte
}

// finishHandshake is DeriveKeys of RFC 9807, section 6.4.2.2, with both MACs.
// The three Diffie-Hellman values come in the RFC's order and are wiped.
func finishHandshake(transcript hash.Hash, dh1, dh2, dh3 []byte) handshake {
	ikm := make([]byte, 0, 3*elementLength)
	for _, dh := range [][]byte{dh1, dh2, dh3} {
		ikm = append(ikm, dh...)
		clear(dh)
	}
	prk := extract(ikm)
	preambleHash := transcript.Sum(nil)
	secret := deriveSecret(prk, labelHandshakeSecret, preambleHash)
	serverKey := deriveSecret(secret, labelServerMAC, nil)
	clientKey := deriveSecret(secret, labelClientMAC, nil)

	var out handshake
	out.sessionKey = deriveSecret(prk, labelSessionKey, preambleHash)
	out.serverMAC = mac(serverKey, preambleHash)
	transcript.Write(out.serverMAC)
	out.clientMAC = mac(clientKey, transcript.Sum(nil))

	for _, b := range [][]byte{ikm, prk, secret, serverKey, clientKey} {
		clear(b)
	}
	return out
}

// deriveSecret is Derive-Secret: HKDF-Expand with a CustomLabel
// (length u16 | label<8..255> | transcript hash<0..255>).
func deriveSecret(secret []byte, label string, transcriptHash []byte) []byte {
	info := binary.BigEndian.AppendUint16(nil, hashLength)
	info = append(info, byte(len(labelPrefix)+len(label)))
	info = append(info, labelPrefix...)
	info = append(info, label...)
	info = append(info, byte(len(transcriptHash)))
	info = append(info, transcriptHash...)
	return expand(secret, info, "", hashLength)
}

// lengthPrefix is I2OSP(len(b), 2). Every caller's b is far below 64 KiB: a
// public key, or a test vector's identity or context.
func lengthPrefix(b []byte) []byte {
	return binary.BigEndian.AppendUint16(nil, uint16(len(b)))
}
