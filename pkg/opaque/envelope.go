package opaque

import (
	"crypto/hmac"

	"github.com/cloudflare/circl/group"
)

// credentials is what the randomized password and an envelope nonce yield
// (RFC 9807, section 4.1).
type credentials struct {
	privateKey group.Scalar
	publicKey  []byte
	exportKey  []byte
	tag        []byte
}

// derive computes the client's keys and the tag that binds them to the server's
// public key and to both identities. Creating an envelope stores the tag,
// recovering one compares it.
func (c config) derive(randomizedPassword, envelopeNonce, serverPublicKey []byte) (credentials, error) {
	authKey := expand(randomizedPassword, envelopeNonce, labelAuthKey, hashLength)
	seed := expand(randomizedPassword, envelopeNonce, labelPrivateKey, seedLength)
	defer clear(authKey)
	defer clear(seed)

	privateKey, publicKey, err := deriveDHKeyPair(seed)
	if err != nil {
		return credentials{}, err
	}
	serverID, clientID := c.serverID(serverPublicKey), c.clientID(publicKey)
	return credentials{
		privateKey: privateKey,
		publicKey:  publicKey,
		exportKey:  expand(randomizedPassword, envelopeNonce, labelExportKey, hashLength),
		tag: mac(authKey, envelopeNonce, serverPublicKey,
			lengthPrefix(serverID), serverID, lengthPrefix(clientID), clientID),
	}, nil
}

// recoverCredentials opens an envelope (RFC 9807, section 4.1.3).
func (c config) recoverCredentials(randomizedPassword, serverPublicKey, envelope []byte) (credentials, error) {
	creds, err := c.derive(randomizedPassword, envelope[:nonceLength], serverPublicKey)
	if err != nil {
		return credentials{}, err
	}
	if !hmac.Equal(creds.tag, envelope[nonceLength:]) {
		clear(creds.exportKey)
		return credentials{}, ErrAuthentication
	}
	return creds, nil
}
