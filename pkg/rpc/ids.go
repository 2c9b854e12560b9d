package rpc

import (
	"encoding/hex"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// IdentityKey is an Ed25519 public key: who somebody is.
type IdentityKey [32]byte

// ChannelID names a channel or a group. The zero value is not one: on the
// wire the inbox is the empty id.
type ChannelID [16]byte

// DeviceID names one device of an identity.
type DeviceID [16]byte

// MessageID is the client's own name for a message (a UUIDv7), by which the
// server recognises a repeated Enqueue.
type MessageID [16]byte

// String returns the key in hexadecimal.
func (k IdentityKey) String() string { return hex.EncodeToString(k[:]) }

// String returns the id in hexadecimal.
func (id ChannelID) String() string { return hex.EncodeToString(id[:]) }

// String returns the id in hexadecimal.
func (id DeviceID) String() string { return hex.EncodeToString(id[:]) }

// ParseIdentityKey checks the length of a field that must be an identity key.
func ParseIdentityKey(field string, b []byte) (key IdentityKey, err error) {
	err = parseFixed(key[:], field, b)
	return key, err
}

// ParseChannelID checks a field that is a channel id, or empty for the inbox,
// which it reports as ok false.
func ParseChannelID(field string, b []byte) (id ChannelID, ok bool, err error) {
	err = parseOptional(id[:], field, b)
	return id, len(b) > 0, err
}

// ParseDeviceID checks a field that is a device id, or empty for none, which
// it reports as ok false.
func ParseDeviceID(field string, b []byte) (id DeviceID, ok bool, err error) {
	err = parseOptional(id[:], field, b)
	return id, len(b) > 0, err
}

// ParseMessageID checks a field that is a message id, or empty for none, which
// it reports as ok false.
func ParseMessageID(field string, b []byte) (id MessageID, ok bool, err error) {
	err = parseOptional(id[:], field, b)
	return id, len(b) > 0, err
}

func parseOptional(dst []byte, field string, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	return parseFixed(dst, field, b)
}

func parseFixed(dst []byte, field string, b []byte) error {
	if len(b) != len(dst) {
		return Errorf(qpcpb.CodeInvalidField, "%s has %d bytes where %d are wanted", field, len(b), len(dst))
	}
	copy(dst, b)
	return nil
}
