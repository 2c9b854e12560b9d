package owner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// Status tells how the server is.
func Status(ctx context.Context, c *command.Call) error {
	m, err := stub(c).GetStatus(ctx, &qpcpb.GetStatusRequest{})
	return answer(c, m, err, func(w io.Writer, m *qpcpb.GetStatusResponse) error {
		rows := [][]string{
			{"Server", fmt.Sprintf("%s, %s, version %s, up %s", m.ServerName, m.Status, m.Version, span(time.Duration(m.UptimeSecs)*time.Second))},
			{"Registration", m.Registration},
		}
		rows = append(rows, many("Listening", m.Listeners, func(l *qpcpb.Listener) string { return l.Name + " " + l.Address })...)
		rows = append(rows, certificate(m.Certificate)...)
		rows = append(rows,
			[]string{"Clients", fmt.Sprintf("%d connected, %d logged in, %s under way", m.Connections, m.Sessions, count(m.CallsInFlight, "call"))},
			[]string{"Accounts", fmt.Sprint(m.Accounts)},
			[]string{"Waiting", fmt.Sprintf("%s, %s", count(m.QueuedMessages, "message"), size(m.QueuedBytes))},
		)
		rows = append(rows, storage(m.Storage)...)
		rows = append(rows, []string{"Memory", size(m.MemoryBytes)})
		rows = append(rows, many("Peers", m.Peers, func(p *qpcpb.PeerStatus) string {
			return fmt.Sprintf("%s %s, %s wait", p.Domain, p.State, count(p.QueuedMessages, "message"))
		})...)
		last := "none since the start"
		if m.LastError != nil {
			last = clock(m.LastError.At) + " " + m.LastError.Message
		}
		return table(w, nil, append(rows, []string{"Last error", last}))
	})
}

// many is a row for each of several things under one word.
func many[T any](word string, things []T, show func(T) string) (rows [][]string) {
	for _, t := range things {
		rows = append(rows, []string{word, show(t)})
		word = ""
	}
	return rows
}

func certificate(m *qpcpb.CertificateStatus) [][]string {
	kind := "by an authority"
	if m.SelfSigned {
		kind = "self-signed"
	}
	rows := [][]string{
		{"Certificate", fmt.Sprintf("%s, until %s", kind, clock(m.NotAfter))},
		{"", "SHA-256 " + m.Pin},
		{"", "names " + strings.Join(m.Names, ", ")},
	}
	return append(rows, many("", m.Warnings, func(w string) string { return "WARNING: " + w })...)
}

func storage(m *qpcpb.StorageStatus) [][]string {
	rows := [][]string{
		{"Storage", fmt.Sprintf("database %s, %s %s", size(m.DatabaseBytes), count(m.Blobs, "file"), size(m.BlobBytes))},
		{"", fmt.Sprintf("%s free on the file system of %s", size(m.FreeBytes), m.DataDir)},
	}
	if m.ReadOnly {
		rows = append(rows, []string{"", "READ-ONLY: " + m.ReadOnlyReason})
	}
	return rows
}

// LogVerify computes the transparency log anew. Problems are an error.
func LogVerify(ctx context.Context, c *command.Call) error {
	m, err := stub(c).VerifyLog(ctx, &qpcpb.VerifyLogRequest{})
	err = answer(c, m, err, func(w io.Writer, m *qpcpb.VerifyLogResponse) error {
		for _, p := range m.Problems {
			fmt.Fprintln(w, clean(p))
		}
		if len(m.Problems) > 0 {
			return nil
		}
		_, err := fmt.Fprintf(w, "The log is whole: %d leaves, root %x.\n", m.TreeSize, m.RootHash)
		return err
	})
	if err == nil && len(m.Problems) > 0 {
		return errors.New("the transparency log is damaged; restore a backup, or ask for help with what was printed")
	}
	return err
}
