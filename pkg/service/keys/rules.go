package keys

import (
	"bytes"
	"encoding/binary"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// The head of a TLS-encoded KeyPackage (RFC 9420, section 10):
//
//	┌ version u16 ┬ cipher_suite u16 ┬ init_key … ┐
const (
	packageHead  = 4
	versionMLS10 = 0x0001 // RFC 9420, section 6
	suite0001    = 0x0001 // MLS_128_DHKEMX25519_AES128GCM_SHA256_Ed25519, section 17.1
)

// checkPackage looks at what the server can tell of a key package: its size,
// version and cipher suite. An MLSMessage around one begins with 0001 0005 and
// is refused by its suite.
func checkPackage(b []byte) error {
	if len(b) > MaxPackage {
		return rpc.Errorf(qpcpb.CodePayloadTooLarge, "the key package has %d bytes where %d are allowed", len(b), MaxPackage)
	}
	if len(b) < packageHead {
		return rpc.Errorf(qpcpb.CodeInvalidField, "package is too short for a KeyPackage; send it whole")
	}
	version, suite := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if version != versionMLS10 || suite != suite0001 {
		return rpc.Errorf(qpcpb.CodeInvalidField,
			"package has version %#04x and cipher suite %#04x; send a bare KeyPackage of mls10 (0x0001) and suite 0x0001", version, suite)
	}
	return nil
}

// shelf is what is stored of one kind for one device.
type shelf struct {
	device     []byte // empty, or 16 bytes
	lastResort bool
	oldest     int64 // row id; a lower one is older
	count      int
}

// holdings are what an identity has stored, seen from one of its devices.
type holdings struct {
	total    int  // one-time packages of all devices
	ofDevice int  // one-time packages of the device
	devices  int  // devices that have any package
	known    bool // the device is one of them
}

// countHoldings adds up a stock, in which the shelves of a device stand
// together.
func countHoldings(stock []shelf, device []byte) holdings {
	var h holdings
	for i, sh := range stock {
		if i == 0 || !bytes.Equal(sh.device, stock[i-1].device) {
			h.devices++
		}
		mine := bytes.Equal(sh.device, device)
		h.known = h.known || mine
		if sh.lastResort {
			continue
		}
		h.total += sh.count
		if mine {
			h.ofDevice = sh.count
		}
	}
	return h
}

// A choice is a package to give out.
type choice struct {
	shelf
	// left is how many one-time packages its device has afterwards.
	left int
}

// choose decides from each shelf's oldest package.
func (sh shelf) choose() choice {
	if sh.lastResort {
		return choice{shelf: sh}
	}
	return choice{shelf: sh, left: sh.count - 1}
}

// pickOne chooses the oldest one-time package of an identity, or when no
// device has one, the oldest last-resort package. ok is false when there is
// nothing.
func pickOne(stock []shelf) (c choice, ok bool) {
	for _, sh := range stock {
		better := sh.oldest < c.oldest
		if sh.lastResort != c.lastResort {
			better = !sh.lastResort
		}
		if !ok || better {
			c, ok = sh.choose(), true
		}
	}
	return c, ok
}

// pickEach chooses for each device its oldest one-time package, or its
// last-resort package. The shelves of a device stand together, one-time first.
func pickEach(stock []shelf) []choice {
	var out []choice
	for _, sh := range stock {
		if n := len(out); n > 0 && bytes.Equal(out[n-1].device, sh.device) {
			continue
		}
		out = append(out, sh.choose())
	}
	return out
}

// leastLeft returns the fewest one-time packages that a device has after the
// choices were given out; 0 when there was nothing to choose.
func leastLeft(choices []choice) int {
	least := -1
	for _, c := range choices {
		if least < 0 || c.left < least {
			least = c.left
		}
	}
	return max(least, 0)
}
