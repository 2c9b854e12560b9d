// Package opaque implements both halves of OPAQUE-3DH (RFC 9807) in the one
// configuration that the qpc protocol uses (PROTOCOL 7.2).
//
// What it promises:
//
//   - The server never sees a password, nor anything from which it could be
//     guessed without the server's own secrets.
//   - Both halves interoperate to the byte with opaque-ke 4 (Rust, and its
//     WebAssembly build @serenity-kit/opaque) and with bytemare/opaque.
//   - A login for a name that does not exist is answered by a message of the
//     same shape, for the same work, and ends like a wrong password
//     (RFC 9807, section 10.9).
//   - No input makes it panic; what cannot be decoded is [ErrMalformed], what
//     does not prove knowledge of the password is [ErrAuthentication].
//
// The configuration: ristretto255-SHA512 as the OPRF (RFC 9497, base mode) and
// as the key exchange group, HKDF-SHA-512, HMAC-SHA-512, an empty context, both
// identities left to default to the public keys, and Argon2id on the client
// (see [DefaultArgon2id]). The credential identifier is the folded username;
// callers pass it, and it must never change between registration and login.
//
// Registration, over a confidential channel that authenticates the server:
//
//	Client                                       Server(setup)
//	NewRegistration(password)
//	            request 32 ------------------->
//	                                             RegistrationResponse
//	            <------------------ response 64
//	Registration.Finish
//	            upload 192 ------------------->
//	                                             CheckRegistrationUpload; store it
//
// Login; the upload, kept as it came, is the record:
//
//	Client                                       Server(setup, record or nil)
//	NewLogin(password)
//	            KE1 96 ----------------------->
//	                                             LoginResponse (keeps LoginState)
//	            <----------------------- KE2 320
//	Login.Finish
//	            KE3 64 ----------------------->
//	                                             LoginState.Finish
//	session key 64                               session key 64
//
// Nothing here does I/O, starts a goroutine or keeps state between calls. A
// [Server] may be used by many goroutines; a client value belongs to one.
package opaque

import "errors"

// Lengths in bytes of the messages on the wire. Every message has a fixed
// length; any other is [ErrMalformed]. The layouts are drawn in messages.go.
const (
	RegistrationRequestLength  = elementLength                 // 32
	RegistrationResponseLength = elementLength + elementLength // 64
	// RegistrationUploadLength is also the length of the record a server stores.
	RegistrationUploadLength = elementLength + hashLength + envelopeLength                                 // 192
	KE1Length                = elementLength + nonceLength + elementLength                                 // 96
	KE2Length                = credentialResponseLength + nonceLength + elementLength + macLength          // 320
	KE3Length                = macLength                                                                   // 64
	PublicKeyLength          = elementLength                                                               // 32
	SessionKeyLength         = hashLength                                                                  // 64
	ExportKeyLength          = hashLength                                                                  // 64
	ServerSetupLength        = 1 + hashLength + scalarLength + elementLength + hashLength + checksumLength // 225
)

// Limits on what callers pass in.
const (
	// MaxPasswordLength in bytes: RFC 9497 gives the OPRF input a two-byte
	// length.
	MaxPasswordLength = 1<<16 - 1
	// MaxCredentialIDLength in bytes: a username of 32 characters with the
	// longest domain has at most 382; far longer is a caller's mistake.
	MaxCredentialIDLength = 2048
)

// Lengths of the parts, named as in RFC 9807, section 2.
const (
	elementLength            = 32 // Noe, Npk: an encoded ristretto255 element
	scalarLength             = 32 // Nok, Nsk: an encoded scalar
	hashLength               = 64 // Nh, Nx: SHA-512
	macLength                = 64 // Nm: HMAC-SHA-512
	nonceLength              = 32 // Nn
	seedLength               = 32 // Nseed
	envelopeLength           = nonceLength + macLength
	maskedResponseLength     = elementLength + envelopeLength
	credentialResponseLength = elementLength + nonceLength + maskedResponseLength
	checksumLength           = 32 // SHA-256
)

var (
	// ErrAuthentication says that the other side did not prove what it had to.
	// On the client: a wrong password, a name the server does not know, or a
	// server without the key of the registration; RFC 9807 makes these one case
	// on purpose. On the server: a wrong KE3.
	ErrAuthentication = errors.New("opaque: authentication failed")

	// ErrMalformed says that a message from the other side has the wrong length
	// or holds something that is not a canonical, non-identity group element.
	// It depends on the message alone and tells nothing of passwords or records.
	ErrMalformed = errors.New("opaque: malformed message")
)

// errUsed answers a second Finish on a value that allows only one.
var errUsed = errors.New("opaque: this value has been finished; start again with fresh randomness")
