package e2ee

import (
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
)

// A recovery bundle (PROTOCOL 7.11):
//
//	master     = Argon2id(code 10, salt, 19 MiB, 2 passes, 1 lane, 32 bytes)
//	salt       = SHA-256("qpc recovery salt v1" ‖ folded username), the first 16 bytes
//	token      = HKDF-SHA-256(master, no salt, "qpc recovery token v1"), 32 bytes
//	token hash = SHA-256(token)
//	key        = HKDF-SHA-256(master, no salt, "qpc recovery bundle v1"), 32 bytes
//
//	┌ version u8 = 1 ┬ nonce 24 ┬ XChaCha20-Poly1305(key) … ┐
//	associated data: "qpc recovery bundle v1" ‖ token hash
//
// A code has 80 random bits, which nobody guesses; Argon2id stands before it
// for a day when somebody can guess more than we think. Its parameters are
// fixed, since whoever comes back has nothing but the code and the name.
const (
	recoveryCodeSize = 10
	recoveryVersion  = 1
	recoveryMemory   = 19 << 10 // KiB
	recoveryPasses   = 2
	recoveryLanes    = 1
	recoverySaltSize = 16
	recoveryGroup    = 4 // characters between two dashes

	// RecoveryCodes is how many codes an account has (PROTOCOL 7.11).
	RecoveryCodes = 8
	// RecoveryOverhead is what SealRecovery adds to a bundle.
	RecoveryOverhead = 1 + VaultOverhead

	// crockford is Crockford's base 32: no I, L, O or U.
	crockford = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
)

// RecoveryCode is what its owner keeps on paper: any one of eight brings the
// account back.
type RecoveryCode [recoveryCodeSize]byte

// NewRecoveryCode makes a code.
func NewRecoveryCode(random io.Reader) (c RecoveryCode, err error) {
	if _, err := io.ReadFull(random, c[:]); err != nil {
		return c, fmt.Errorf("making a recovery code: %w", err)
	}
	return c, nil
}

// String writes the code for people: XXXX-XXXX-XXXX-XXXX.
func (c RecoveryCode) String() string {
	text := base32.NewEncoding(crockford).EncodeToString(c[:])
	var groups []string
	for ; len(text) > 0; text = text[recoveryGroup:] {
		groups = append(groups, text[:recoveryGroup])
	}
	return strings.Join(groups, "-")
}

// ParseRecoveryCode reads a code as people write it: in either case, with or
// without dashes and spaces, O for 0 and I or L for 1. Anything else is
// ErrMalformed. A mistake within the alphabet cannot be seen here.
func ParseRecoveryCode(s string) (c RecoveryCode, err error) {
	text := strings.Map(func(r rune) rune {
		switch r {
		case '-', ' ', '\t', '\r', '\n':
			return -1
		case 'o', 'O':
			return '0'
		case 'i', 'I', 'l', 'L':
			return '1'
		}
		if r >= 'a' && r <= 'z' {
			r += 'A' - 'a'
		}
		return r
	}, s)
	raw, err := base32.NewEncoding(crockford).DecodeString(text)
	if err != nil || len(raw) != recoveryCodeSize {
		return c, fmt.Errorf("a recovery code has 16 letters and digits, like 1234-5678-9ABC-DEFG: %w", ErrMalformed)
	}
	return RecoveryCode(raw), nil
}

// RecoveryKey is what a code becomes for an account.
type RecoveryKey struct {
	// TokenHash is what the bundle is found by.
	TokenHash []byte
	// Key seals the bundle. It does not lead back to the code.
	Key []byte
}

// Key derives what the code stands for in the account of a folded name. It
// takes as long as a login.
func (c RecoveryCode) Key(username string) (k RecoveryKey, err error) {
	salt := sha256.Sum256([]byte(labelRecoverySalt + username))
	master := argon2.IDKey(c[:], salt[:recoverySaltSize], recoveryPasses, recoveryMemory, recoveryLanes, sha256.Size)
	token, err := hkdf.Key(sha256.New, master, nil, labelRecoveryToken, sha256.Size)
	if err != nil {
		return k, fmt.Errorf("deriving a recovery token: %w", err)
	}
	hash := sha256.Sum256(token)
	k.TokenHash = hash[:]
	k.Key, err = hkdf.Key(sha256.New, master, nil, labelRecoveryBundle, chacha20poly1305.KeySize)
	if err != nil {
		return k, fmt.Errorf("deriving a recovery key: %w", err)
	}
	return k, nil
}

// Check returns ErrMalformed for a stored key with parts of another length.
func (k RecoveryKey) Check() error {
	if len(k.TokenHash) != sha256.Size || len(k.Key) != chacha20poly1305.KeySize {
		return fmt.Errorf("a recovery key: %w", ErrMalformed)
	}
	return nil
}

func (k RecoveryKey) vault() (*Vault, string, error) {
	if err := k.Check(); err != nil {
		return nil, "", err
	}
	return &Vault{key: [vaultKeySize]byte(k.Key)}, labelRecoveryBundle + string(k.TokenHash), nil
}

// SealRecovery seals the content of a bundle.
func SealRecovery(random io.Reader, k RecoveryKey, content []byte) ([]byte, error) {
	vault, name, err := k.vault()
	if err != nil {
		return nil, err
	}
	sealed, err := vault.Seal(random, name, content)
	if err != nil {
		return nil, err
	}
	return append([]byte{recoveryVersion}, sealed...), nil
}

// OpenRecovery opens what SealRecovery made: ErrMalformed for what is no
// bundle of this version, ErrDecrypt for one of another code, or changed.
func OpenRecovery(k RecoveryKey, bundle []byte) ([]byte, error) {
	vault, name, err := k.vault()
	if err != nil {
		return nil, err
	}
	if len(bundle) < RecoveryOverhead || bundle[0] != recoveryVersion {
		return nil, fmt.Errorf("the recovery bundle: %w", ErrMalformed)
	}
	content, err := vault.Open(name, bundle[1:])
	if errors.Is(err, ErrDecrypt) {
		return nil, fmt.Errorf("the recovery bundle: %w", ErrDecrypt) // without the name, which holds the hash
	}
	return content, err
}
