package opaque

import "golang.org/x/crypto/argon2"

// Argon2id holds the parameters of the client's key stretching function
// (RFC 9807, section 2.3; RFC 9106). Both ends of an account's life depend on
// them: a client with other parameters cannot log in.
type Argon2id struct {
	MemoryKiB uint32 // m, in KiB
	Passes    uint32 // t
	Lanes     uint8  // p
	SaltBytes uint32 // so many zero bytes; the OPRF key is the real salt
	Output    uint32 // bytes
}

// DefaultArgon2id returns the parameters of PROTOCOL 7.2, which are those of
// opaque-ke 4 with its argon2 feature: 19 MiB, two passes, one lane, 16 zero
// bytes of salt, 64 bytes out.
func DefaultArgon2id() Argon2id {
	return Argon2id{MemoryKiB: 19456, Passes: 2, Lanes: 1, SaltBytes: 16, Output: hashLength}
}

func (a Argon2id) stretch(input []byte) []byte {
	return argon2.IDKey(input, make([]byte, a.SaltBytes), a.Passes, a.MemoryKiB, a.Lanes, a.Output)
}
