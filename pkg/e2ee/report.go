package e2ee

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// A report to the admins of a server:
//
//	┌ version u8 = 1 ┬ count u8 ┬ count × slot 1226 ┬ nonce 24 ┬ XChaCha20-Poly1305(key) … ┐
//	slot:    identity key 32 ‖ hybrid envelope for it of "qpc report v1" ‖ key 32
//	content: length u32 ‖ report ‖ zeros, to a multiple of 4 KiB
//	associated data: all that stands before the nonce
//
// The label keeps an envelope from being taken for a message, or a message for
// a slot. The length of a report shows in steps of 4 KiB only, since the router
// could tell from it which stored message is meant.
const (
	reportVersion    = 1
	reportHeaderSize = 2
	reportKeySize    = chacha20poly1305.KeySize
	reportSlotSize   = IdentityKeySize + HybridOverhead + len(labelReport) + reportKeySize
	reportStep       = 4 << 10
	// maxReaders is what the count has room for.
	maxReaders = 255
)

// Reader is somebody who may open a report.
type Reader struct {
	Identity  IdentityKey
	HybridKey []byte // their hybrid public key
}

// ReportCapacity is the longest content of a report to so many readers that
// has at most size bytes when it is sealed; below 0 there is no room for any.
func ReportCapacity(readers, size int) int {
	room := size - reportHeaderSize - readers*reportSlotSize - VaultOverhead
	return room/reportStep*reportStep - 4
}

// SealReport encrypts a report to its readers, of whom there must be one.
func SealReport(random io.Reader, readers []Reader, content []byte) ([]byte, error) {
	if len(readers) == 0 || len(readers) > maxReaders {
		return nil, fmt.Errorf("a report to %d readers: %w", len(readers), ErrMalformed)
	}
	vault := &Vault{}
	if _, err := io.ReadFull(random, vault.key[:]); err != nil {
		return nil, fmt.Errorf("making the key of a report: %w", err)
	}
	out := []byte{reportVersion, byte(len(readers))}
	for _, r := range readers {
		envelope, err := SealHybrid(random, r.HybridKey, r.Identity, append([]byte(labelReport), vault.key[:]...))
		if err != nil {
			return nil, err
		}
		out = append(append(out, r.Identity[:]...), envelope...)
	}
	padded := binary.BigEndian.AppendUint32(nil, uint32(len(content)))
	padded = append(padded, content...)
	padded = append(padded, make([]byte, (reportStep-len(padded)%reportStep)%reportStep)...)
	sealed, err := vault.Seal(random, string(out), padded)
	if err != nil {
		return nil, err
	}
	return append(out, sealed...), nil
}

// OpenReport opens a report as one of its readers. ErrMalformed: no report of
// this version. ErrDecrypt: not for this reader, or changed.
func OpenReport(key *HybridKey, reader IdentityKey, report []byte) ([]byte, error) {
	if len(report) < reportHeaderSize || report[0] != reportVersion {
		return nil, fmt.Errorf("the report: %w", ErrMalformed)
	}
	head := reportHeaderSize + int(report[1])*reportSlotSize
	if len(report) < head+VaultOverhead {
		return nil, fmt.Errorf("the report: %w", ErrMalformed)
	}
	for slot := report[reportHeaderSize:head]; len(slot) > 0; slot = slot[reportSlotSize:] {
		if !bytes.Equal(slot[:IdentityKeySize], reader[:]) {
			continue
		}
		plain, err := key.Open(reader, slot[IdentityKeySize:reportSlotSize])
		if err != nil {
			return nil, err
		}
		secret, ok := bytes.CutPrefix(plain, []byte(labelReport))
		if !ok || len(secret) != reportKeySize {
			return nil, fmt.Errorf("the key of the report: %w", ErrMalformed)
		}
		padded, err := (&Vault{key: [vaultKeySize]byte(secret)}).Open(string(report[:head]), report[head:])
		if err != nil {
			return nil, fmt.Errorf("the report: %w", ErrDecrypt)
		}
		if len(padded) < 4 || uint64(binary.BigEndian.Uint32(padded)) > uint64(len(padded)-4) {
			return nil, fmt.Errorf("the content of the report: %w", ErrMalformed)
		}
		return padded[4 : 4+binary.BigEndian.Uint32(padded)], nil
	}
	return nil, fmt.Errorf("the report is for somebody else: %w", ErrDecrypt)
}
