package owner

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// CertNew gives the server a new certificate key that the old one hands over
// to.
func CertNew(ctx context.Context, c *command.Call) error {
	m, err := stub(c).RotateCertificate(ctx, &qpcpb.RotateCertificateRequest{})
	return answer(c, m, err, func(w io.Writer, m *qpcpb.RotateCertificateResponse) error {
		pin, err := transport.ParsePin(m.NewPin)
		if err != nil {
			return fmt.Errorf("reading the new pin: %w", err)
		}
		_, err = fmt.Fprintf(w, "The certificate has a new key. Its fingerprint is\n  %s\n  %s\n"+
			"Clients and servers that know the old one follow by themselves, and invite links\nstill work.\n",
			m.NewPin, strings.Join(pin.Words(), " "))
		return err
	})
}
