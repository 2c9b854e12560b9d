package e2ee

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"
)

// A vault's header, which may lie in the open:
//
//	┌ version u8 = 1 ┬ salt 16 ┬ memory KiB u32 ┬ passes u32 ┬ lanes u8 ┬ sealed data key 72 ┐
//
// The data key is 32 random bytes, sealed under Argon2id(password, salt) with
// what stands before it as associated data, so that lowered parameters do not
// open. A sealed value is nonce 24 ‖ XChaCha20-Poly1305(data key), with its
// name as associated data, so that values cannot be swapped.
const (
	vaultVersion    = 1
	vaultSaltSize   = 16
	vaultPrefixSize = 1 + vaultSaltSize + 4 + 4 + 1
	vaultKeySize    = chacha20poly1305.KeySize
	// VaultOverhead is what Seal adds to a value.
	VaultOverhead   = chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
	vaultHeaderSize = vaultPrefixSize + vaultKeySize + VaultOverhead
)

// KDF is how hard a password is to try: Argon2id (RFC 9106).
type KDF struct {
	MemoryKiB uint32
	Passes    uint32
	Lanes     uint8
}

// DefaultKDF is RFC 9106's second recommended option: 64 MiB and three passes,
// about 0.1 s on a laptop.
func DefaultKDF() KDF { return KDF{MemoryKiB: 64 << 10, Passes: 3, Lanes: 4} }

// Vault seals what a client stores. It never changes, and is safe for
// concurrent use.
type Vault struct{ key [vaultKeySize]byte }

// NewVault makes a vault and the header that opens it again.
func NewVault(random io.Reader, password []byte, kdf KDF) (v *Vault, header []byte, err error) {
	v = &Vault{}
	if _, err := io.ReadFull(random, v.key[:]); err != nil {
		return nil, nil, fmt.Errorf("making a data key: %w", err)
	}
	header, err = v.Rewrap(random, password, kdf)
	return v, header, err
}

// Rewrap returns a header that opens the same vault with another password.
func (v *Vault) Rewrap(random io.Reader, password []byte, kdf KDF) (header []byte, err error) {
	header = make([]byte, 1+vaultSaltSize, vaultHeaderSize)
	header[0] = vaultVersion
	if _, err := io.ReadFull(random, header[1:]); err != nil {
		return nil, fmt.Errorf("making a salt: %w", err)
	}
	header = binary.BigEndian.AppendUint32(header, kdf.MemoryKiB)
	header = binary.BigEndian.AppendUint32(header, kdf.Passes)
	header = append(header, kdf.Lanes)
	if err := kdf.check(); err != nil {
		return nil, err
	}
	wrap := &Vault{key: kdf.derive(password, header)}
	// No label is needed: the key from the password seals nothing but the data key.
	sealed, err := wrap.Seal(random, string(header), v.key[:])
	if err != nil {
		return nil, err
	}
	return append(header, sealed...), nil
}

// OpenVault opens a vault by its header. The error is ErrPassword for a wrong
// password or a changed header, and ErrMalformed for what is no header.
func OpenVault(header, password []byte) (*Vault, error) {
	if len(header) != vaultHeaderSize || header[0] != vaultVersion {
		return nil, fmt.Errorf("the header of the vault: %w", ErrMalformed)
	}
	prefix := header[:vaultPrefixSize]
	kdf := KDF{
		MemoryKiB: binary.BigEndian.Uint32(prefix[1+vaultSaltSize:]),
		Passes:    binary.BigEndian.Uint32(prefix[1+vaultSaltSize+4:]),
		Lanes:     prefix[vaultPrefixSize-1],
	}
	if err := kdf.check(); err != nil {
		return nil, err
	}
	wrap := &Vault{key: kdf.derive(password, prefix)}
	key, err := wrap.Open(string(prefix), header[vaultPrefixSize:])
	if err != nil {
		return nil, ErrPassword
	}
	return &Vault{key: [vaultKeySize]byte(key)}, nil
}

func (k KDF) check() error {
	if k.MemoryKiB == 0 || k.MemoryKiB > maxVaultMemoryKiB || k.Passes == 0 || k.Passes > maxVaultPasses || k.Lanes == 0 {
		return fmt.Errorf("the password parameters of the vault: %w", ErrMalformed)
	}
	return nil
}

func (k KDF) derive(password, prefix []byte) [vaultKeySize]byte {
	return [vaultKeySize]byte(argon2.IDKey(password, prefix[1:1+vaultSaltSize], k.Passes, k.MemoryKiB, k.Lanes, vaultKeySize))
}

// Seal encrypts a value under its name.
func (v *Vault) Seal(random io.Reader, name string, value []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(v.key[:])
	if err != nil {
		return nil, err
	}
	sealed := make([]byte, chacha20poly1305.NonceSizeX, VaultOverhead+len(value))
	if _, err := io.ReadFull(random, sealed); err != nil {
		return nil, fmt.Errorf("making a nonce: %w", err)
	}
	return aead.Seal(sealed, sealed, value, []byte(name)), nil
}

// Open decrypts what Seal made under the same name, or returns ErrDecrypt.
func (v *Vault) Open(name string, sealed []byte) ([]byte, error) {
	aead, err := chacha20poly1305.NewX(v.key[:])
	if err != nil {
		return nil, err
	}
	if len(sealed) < VaultOverhead {
		return nil, fmt.Errorf("the value %s: %w", name, ErrMalformed)
	}
	value, err := aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], []byte(name))
	if err != nil {
		return nil, fmt.Errorf("the value %s: %w", name, ErrDecrypt)
	}
	return value, nil
}
