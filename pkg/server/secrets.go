package server

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"

	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	selectSecret = `SELECT value FROM server_secret WHERE name = ?`
	insertSecret = `INSERT INTO server_secret (name, value) VALUES (?, ?)`
)

// secrets are the keys of the server. They live in the database, so that they
// are backed up and restored with the accounts that are worth nothing without
// them.
type secrets struct {
	opaque    opaque.ServerSetup
	signing   ed25519.PrivateKey // delivery proofs and checkpoints
	transport transport.Secret
}

// loadSecrets reads the keys, making those that are missing.
func loadSecrets(ctx context.Context, db *store.DB, random io.Reader) (s secrets, err error) {
	err = db.Write(ctx, func(tx *store.Tx) error {
		setup, err := secretTx(tx, "opaque", func() ([]byte, error) {
			setup, err := opaque.NewServerSetup(random)
			if err != nil {
				return nil, err
			}
			return setup.MarshalBinary()
		})
		if err != nil {
			return err
		}
		if err := s.opaque.UnmarshalBinary(setup); err != nil {
			return err
		}
		seed, err := secretTx(tx, "signing", randomBytes(random, ed25519.SeedSize))
		if err != nil {
			return err
		}
		if len(seed) != ed25519.SeedSize {
			return fmt.Errorf("the signing key has %d bytes", len(seed))
		}
		s.signing = ed25519.NewKeyFromSeed(seed)
		ticket, err := secretTx(tx, "transport", randomBytes(random, len(s.transport)))
		if err != nil {
			return err
		}
		if copy(s.transport[:], ticket) != len(s.transport) {
			return fmt.Errorf("the transport secret has %d bytes", len(ticket))
		}
		return nil
	})
	if err != nil {
		return s, fmt.Errorf("reading the keys of the server: %w", err)
	}
	return s, nil
}

// secretTx returns a secret, making and storing it when there is none.
func secretTx(tx *store.Tx, name string, generate func() ([]byte, error)) (value []byte, err error) {
	err = tx.QueryRow(selectSecret, name).Scan(&value)
	if !errors.Is(err, store.ErrNoRows) {
		return value, err
	}
	if value, err = generate(); err != nil {
		return nil, err
	}
	_, err = tx.Exec(insertSecret, name, value)
	return value, err
}

func randomBytes(random io.Reader, n int) func() ([]byte, error) {
	return func() ([]byte, error) {
		b := make([]byte, n)
		_, err := io.ReadFull(random, b)
		return b, err
	}
}
