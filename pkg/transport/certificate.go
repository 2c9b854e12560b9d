package transport

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// A CertificateStore holds a server's certificate and key, read from two files,
// and swaps them as one when [CertificateStore.Reload] finds others. It is safe
// for concurrent use.
type CertificateStore struct {
	certPath, keyPath string
	now               func() time.Time
	created           bool
	rotating          sync.Mutex
	current           atomic.Pointer[tls.Certificate]
}

// LoadOrCreate reads a certificate (or chain, leaf first) and its key. Each file
// may be DER or PEM, told apart by content; the key is PKCS #8, SEC 1 or
// PKCS #1, of type ECDSA (P-256, P-384, P-521), Ed25519 or RSA (2,048 bits or
// more), and unencrypted.
//
// When neither file exists, a pair is made: DER, self-signed, for names (see
// [DefaultNames]), key mode 0600, certificate mode 0644. The key is written
// first, so a power cut in between leaves a key alone, and then the certificate
// is made for that key and no client notices. A certificate without its key is
// refused and left as it is.
//
// now tells the time for [CertificateStore.Warnings] (nil: time.Now); random
// gives the serial number (nil: crypto/rand; keys always come from the system's
// source, as Go's crypto/ecdsa insists).
func LoadOrCreate(certPath, keyPath string, names []string, now func() time.Time, random io.Reader) (*CertificateStore, error) {
	if now == nil {
		now = time.Now
	}
	s := &CertificateStore{certPath: certPath, keyPath: keyPath, now: now}
	if err := finishRotation(certPath, keyPath); err != nil {
		return nil, err
	}
	haveCert, err := exists(certPath)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	haveKey, err := exists(keyPath)
	if err != nil {
		return nil, fmt.Errorf("read the private key: %w", err)
	}
	switch {
	case haveCert && !haveKey:
		return nil, fmt.Errorf("certificate %s has lost its private key %s: put the key back, or remove the certificate to have a new pair made, which every client must then trust anew", certPath, keyPath)
	case !haveCert:
		if err := createPair(certPath, keyPath, haveKey, names, random); err != nil {
			return nil, err
		}
		s.created = true
	}
	pair, err := s.load()
	if err != nil {
		return nil, err
	}
	s.current.Store(pair)
	return s, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Created reports whether LoadOrCreate made the certificate.
func (s *CertificateStore) Created() bool { return s.created }

// Reload reads both files again and swaps certificate and key as one; changed
// tells whether they differ from before. New handshakes use the new pair, live
// connections go on. On an error the old pair stays in use. Call it on SIGHUP,
// or now and then: reading two small files is cheap.
func (s *CertificateStore) Reload() (changed bool, err error) {
	pair, err := s.load()
	if err != nil {
		return false, fmt.Errorf("the certificate in use stays: %w", err)
	}
	old := s.current.Swap(pair)
	same := len(old.Certificate) == len(pair.Certificate)
	for i := 0; same && i < len(pair.Certificate); i++ {
		same = bytes.Equal(old.Certificate[i], pair.Certificate[i])
	}
	return !same, nil
}

// nextSuffix ends the names of the files of a pair that is to take the place of
// the present one.
const nextSuffix = ".next"

// ErrNotSelfSigned is returned by [CertificateStore.Rotate] for a certificate
// that an authority has issued: a new one comes from there.
var ErrNotSelfSigned = errors.New("the certificate is not self-signed; renew it where it was issued")

// SelfSigned reports whether the present certificate is signed by its own key.
func (s *CertificateStore) SelfSigned() bool { return selfSigned(s.Leaf()) }

func selfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, cert.RawSubject) &&
		cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

// Rotate makes a new key and a self-signed certificate for it that carries the
// old key's hand-over ([HandedOver]), and serves with them from then on. The old
// key is gone afterwards. A power cut leaves either pair whole: the new one
// counts once its certificate is written beside the old one.
func (s *CertificateStore) Rotate(names []string, random io.Reader) error {
	s.rotating.Lock()
	defer s.rotating.Unlock()
	old := s.current.Load()
	oldKey, ok := old.PrivateKey.(crypto.Signer)
	if !ok || !selfSigned(old.Leaf) {
		return ErrNotSelfSigned
	}
	key, keyDER, err := newKey()
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return fmt.Errorf("encode the public key: %w", err)
	}
	handOvers, err := signHandOvers(old.Leaf, oldKey, sha256.Sum256(public))
	if err != nil {
		return err
	}
	certDER, err := selfSign(key, names, handOvers, random)
	if err != nil {
		return err
	}
	if err := writeAtomic(s.keyPath+nextSuffix, keyDER, privateMode); err != nil {
		return fmt.Errorf("store the new private key: %w", err)
	}
	if err := writeAtomic(s.certPath+nextSuffix, certDER, publicMode); err != nil {
		return fmt.Errorf("store the new certificate: %w", err)
	}
	if err := finishRotation(s.certPath, s.keyPath); err != nil {
		return err
	}
	_, err = s.Reload()
	return err
}

// finishRotation puts a new pair in the place of the old one, if a whole one
// stands beside it, and removes a new key that never got its certificate.
func finishRotation(certPath, keyPath string) error {
	ready, err := exists(certPath + nextSuffix)
	if err != nil {
		return fmt.Errorf("look for a new certificate: %w", err)
	}
	if !ready {
		if err := os.Remove(keyPath + nextSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove an unfinished private key: %w", err)
		}
		return nil
	}
	for _, path := range []string{keyPath, certPath} {
		err := os.Rename(path+nextSuffix, path)
		if err == nil {
			err = syncDir(filepath.Dir(path))
		}
		// The key may have been moved before a power cut.
		if err != nil && !(path == keyPath && errors.Is(err, fs.ErrNotExist)) {
			return fmt.Errorf("put the new certificate in place: %w", err)
		}
	}
	return nil
}

// GetCertificate is for tls.Config: the present certificate.
func (s *CertificateStore) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return s.current.Load(), nil
}

// Leaf is the present certificate. It must not be changed.
func (s *CertificateStore) Leaf() *x509.Certificate { return s.current.Load().Leaf }

// Pin is the pin of the present certificate's key.
func (s *CertificateStore) Pin() Pin { return PinOf(s.Leaf()) }

// warnBefore is how long before its end a certificate is warned of. ACME clients
// renew at 30 days, so that what stands here then has not been renewed.
const warnBefore = 30 * 24 * time.Hour

// Warnings lists what is wrong with the present pair but does not keep it from
// use, one sentence each. Dates are judged only when the clock knows the time:
// clients that pin the key do not look at dates at all.
func (s *CertificateStore) Warnings() []string {
	var out []string
	leaf, now := s.Leaf(), s.now()
	switch {
	case clockUnset(now):
	case now.After(leaf.NotAfter):
		out = append(out, fmt.Sprintf("certificate %s expired on %s: clients that check dates refuse it; renew it", s.certPath, leaf.NotAfter.Format(time.DateOnly)))
	case leaf.NotAfter.Sub(now) < warnBefore:
		out = append(out, fmt.Sprintf("certificate %s expires on %s: renew it", s.certPath, leaf.NotAfter.Format(time.DateOnly)))
	case now.Before(leaf.NotBefore):
		out = append(out, fmt.Sprintf("certificate %s is not valid before %s: clients that check dates refuse it until then", s.certPath, leaf.NotBefore.Format(time.DateOnly)))
	}
	if leaf.IsCA {
		out = append(out, fmt.Sprintf("certificate %s is marked as a certificate authority: clients built on rustls (quicprochat) refuse it as a server's certificate", s.certPath))
	}
	if info, err := os.Stat(s.keyPath); err == nil && info.Mode().Perm()&0o077 != 0 {
		out = append(out, fmt.Sprintf("private key %s can be read by others (mode %04o): chmod 600 it", s.keyPath, info.Mode().Perm()))
	}
	return out
}

func (s *CertificateStore) load() (*tls.Certificate, error) {
	data, err := readBounded(s.certPath)
	if err != nil {
		return nil, fmt.Errorf("read the certificate: %w", err)
	}
	chain, err := parseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("certificate file %s: %w", s.certPath, err)
	}
	if data, err = readBounded(s.keyPath); err != nil {
		return nil, fmt.Errorf("read the private key: %w", err)
	}
	key, err := parsePrivateKey(data)
	if err != nil {
		return nil, fmt.Errorf("private key file %s: %w", s.keyPath, err)
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(chain[0].PublicKey) {
		return nil, fmt.Errorf("private key %s does not belong to the first certificate in %s: name the two files of one pair", s.keyPath, s.certPath)
	}
	pair := &tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, c := range chain {
		pair.Certificate = append(pair.Certificate, c.Raw)
	}
	return pair, nil
}

// parseCertificates reads one or more certificates, DER or PEM.
func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	if !isPEM(data) {
		certs, err := x509.ParseCertificates(data)
		if err != nil {
			return nil, fmt.Errorf("is neither a DER nor a PEM certificate: %w", err)
		}
		if len(certs) == 0 {
			return nil, errors.New("is empty")
		}
		return certs, nil
	}
	var certs []*x509.Certificate
	for block := (*pem.Block)(nil); ; {
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("PEM certificate %d cannot be read: %w", len(certs)+1, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("holds no whole PEM block of type CERTIFICATE")
	}
	return certs, nil
}

// parsePrivateKey reads the first private key, DER or PEM.
func parsePrivateKey(data []byte) (crypto.Signer, error) {
	if isPEM(data) {
		for {
			var block *pem.Block
			if block, data = pem.Decode(data); block == nil {
				return nil, errors.New("holds no whole PEM block of a private key")
			}
			if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
				return nil, errors.New("is encrypted: store it without a passphrase, mode 0600")
			}
			if block.Type == "PRIVATE KEY" || block.Type == "EC PRIVATE KEY" || block.Type == "RSA PRIVATE KEY" {
				data = block.Bytes
				break
			}
		}
	}
	var key any
	var err error
	if key, err = x509.ParsePKCS8PrivateKey(data); err != nil {
		if ec, ecErr := x509.ParseECPrivateKey(data); ecErr == nil {
			key = ec
		} else if r, rsaErr := x509.ParsePKCS1PrivateKey(data); rsaErr == nil {
			key = r
		} else {
			return nil, fmt.Errorf("is no PKCS #8, SEC 1 or PKCS #1 key: %w", err)
		}
	}
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		if k.Curve == elliptic.P224() {
			return nil, errors.New("is on curve P-224, which TLS 1.3 does not have: use P-256")
		}
		return k, nil
	case ed25519.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		if k.N.BitLen() < minRSABits {
			return nil, fmt.Errorf("is an RSA key of %d bits: peers demand %d", k.N.BitLen(), minRSABits)
		}
		return k, nil
	}
	return nil, fmt.Errorf("is of type %T: use ECDSA, Ed25519 or RSA", key)
}

func isPEM(data []byte) bool { return bytes.Contains(data, []byte("-----BEGIN ")) }
