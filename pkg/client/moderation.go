package client

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

const (
	// reportContext is how many messages before the reported one go with it.
	reportContext = 5
	// maxReport is the largest report that a server takes, in bytes.
	maxReport = 32 << 10
	// reportPage is how many reports are asked for at once: they come whole.
	reportPage = 50
)

// Block makes the server drop from now on what somebody sends to this account,
// without telling them.
func (c *Client) Block(ctx context.Context, peer rpc.IdentityKey) error {
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewDirectoryClient(calls).BlockUser(ctx, &qpcpb.BlockUserRequest{IdentityKey: peer[:]})
		return err
	})
}

// Unblock undoes Block.
func (c *Client) Unblock(ctx context.Context, peer rpc.IdentityKey) error {
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewDirectoryClient(calls).UnblockUser(ctx, &qpcpb.UnblockUserRequest{IdentityKey: peer[:]})
		return err
	})
}

// Report is what the admins of a server are told of a message. It is the word
// of who reports: nothing in it proves that the message was sent.
type Report struct {
	// Reported is who is said to have written the message.
	Reported string          `json:"reported_key"` // hexadecimal
	Name     string          `json:"reported_name,omitempty"`
	Reason   string          `json:"reason,omitempty"`
	Message  ReportedMessage `json:"message"`
	// Context is what stood before it, oldest first.
	Context []ReportedMessage `json:"context,omitempty"`
}

// ReportedMessage is a message as it stands in a report.
type ReportedMessage struct {
	ByReporter bool      `json:"by_reporter,omitempty"`
	ID         string    `json:"id,omitempty"` // hexadecimal
	Text       string    `json:"text,omitempty"`
	File       string    `json:"file,omitempty"` // its name
	SentAt     time.Time `json:"sent_at,omitzero"`
	StoredAt   time.Time `json:"stored_at,omitzero"` // by the reporter's clock
	// Cut is set when the text was too long for a report.
	Cut bool `json:"cut,omitempty"`
}

// ErrNoModerator reports a server on which nobody could read a report.
var ErrNoModerator = errors.New("this server has no admin who could read a report; block whoever disturbs you, and speak to its owner")

func reported(m Message) ReportedMessage {
	r := ReportedMessage{ByReporter: m.Mine, Text: m.Text + m.Emoji, File: m.Name, SentAt: m.SentAt, StoredAt: m.Stored}
	if m.ID != (e2ee.MessageID{}) {
		r.ID = hex.EncodeToString(m.ID[:])
	}
	return r
}

// ReportMessage reports a message of a conversation, with a few before it, to
// the admins of the server. It is encrypted to them; the server itself learns
// that this account has reported something, and not whom or what.
func (c *Client) ReportMessage(ctx context.Context, m Message, reason string) error {
	if m.Mine {
		return errors.New("this message is your own; report what others have written")
	}
	p, err := c.contact(ctx, m.Peer)
	if err != nil {
		return err
	}
	report := Report{Reported: m.Peer.String(), Name: p.Name, Reason: reason, Message: reported(m)}
	err = c.History(ctx, m.Peer, 0, func(before Message) bool {
		if before.No >= m.No {
			return false
		}
		if report.Context = append(report.Context, reported(before)); len(report.Context) > reportContext {
			report.Context = report.Context[1:]
		}
		return true
	})
	if err != nil {
		return err
	}
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		readers, err := c.reportReaders(ctx, calls)
		if err != nil {
			return err
		}
		content, err := report.fit(e2ee.ReportCapacity(len(readers), maxReport))
		if err != nil {
			return err
		}
		sealed, err := e2ee.SealReport(c.options.Rand, readers, content)
		if err != nil {
			return fmt.Errorf("encrypting the report: %w", err)
		}
		// Without the conversation's id: the server could tell from it whom the
		// report is about.
		response, err := qpcpb.NewModerationClient(calls).ReportMessage(ctx, &qpcpb.ReportMessageRequest{EncryptedReport: sealed})
		if err == nil && !response.Accepted {
			err = ErrNoModerator
		}
		return err
	})
}

// fit encodes a report in at most size bytes, leaving out the oldest context
// first and cutting the text last.
func (r Report) fit(size int) ([]byte, error) {
	for {
		content, err := json.Marshal(r)
		if err != nil || len(content) <= size {
			return content, err
		}
		switch text := []rune(r.Message.Text); {
		case len(r.Context) > 0:
			r.Context = r.Context[1:]
		case len(text) > 0:
			r.Message.Text, r.Message.Cut = string(text[:len(text)/2]), true
		default:
			return nil, fmt.Errorf("the reason is too long for a report: %w", e2ee.ErrMalformed)
		}
	}
}

// reportReaders returns whom a report is encrypted to.
func (c *Client) reportReaders(ctx context.Context, calls *rpc.Client) (readers []e2ee.Reader, err error) {
	admins, err := qpcpb.NewModerationClient(calls).ListReportKeys(ctx, &qpcpb.ListReportKeysRequest{})
	if err != nil {
		return nil, fmt.Errorf("asking who reads reports: %w", err)
	}
	keys, err := qpcpb.NewKeyClient(calls).FetchHybridKeys(ctx, &qpcpb.FetchHybridKeysRequest{IdentityKeys: admins.IdentityKeys})
	if err != nil {
		return nil, fmt.Errorf("asking for the keys of who reads reports: %w", err)
	}
	for _, key := range keys.Keys {
		identity, err := e2ee.ParseIdentityKey(key.IdentityKey)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", rpc.ErrProtocol, err)
		}
		if len(key.HybridPublicKey) > 0 { // an admin who was never online has none
			readers = append(readers, e2ee.Reader{Identity: identity, HybridKey: key.HybridPublicKey})
		}
	}
	if len(readers) == 0 {
		return nil, ErrNoModerator
	}
	return readers, nil
}

// ReceivedReport is a report as an admin reads it.
type ReceivedReport struct {
	ID       uint64
	Reporter rpc.IdentityKey
	At       time.Time
	Report   Report
	// Problem says why the report cannot be read here; Report is empty then.
	Problem string
}

// Reports returns the reports that the server keeps, the oldest first, opened
// with this account's keys. Only admins may ask.
func (c *Client) Reports(ctx context.Context) (all []ReceivedReport, err error) {
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		for offset := uint32(0); ; {
			page, err := qpcpb.NewModerationClient(calls).ListReports(ctx, &qpcpb.ListReportsRequest{Limit: reportPage, Offset: offset})
			if err != nil {
				return err
			}
			for _, entry := range page.Reports {
				reporter, err := rpc.ParseIdentityKey("reporter_identity", entry.ReporterIdentity)
				if err != nil {
					return fmt.Errorf("%w: %w", rpc.ErrProtocol, err)
				}
				r := ReceivedReport{ID: entry.Id, Reporter: reporter, At: time.Unix(int64(entry.Timestamp), 0)}
				if r.Report, err = c.openReport(entry.EncryptedReport); err != nil {
					c.options.Log.Debug("a report cannot be read", "id", r.ID, "error", err)
					r.Problem = "this report is not for this account's present keys, or not one that this version can read"
				}
				all = append(all, r)
			}
			if len(page.Reports) < reportPage {
				return nil
			}
			offset += uint32(len(page.Reports))
		}
	})
	return all, err
}

func (c *Client) openReport(sealed []byte) (r Report, err error) {
	content, err := e2ee.OpenReport(c.hybrid, c.self.Key(), sealed)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(content, &r); err != nil {
		return Report{}, fmt.Errorf("the content of the report: %w: %w", e2ee.ErrMalformed, err)
	}
	return r, nil
}

// Ban is an identity that cannot log in.
type Ban struct {
	Identity rpc.IdentityKey
	Reason   string
	Since    time.Time
	Until    time.Time // zero for good
}

// Ban ends the sessions of an identity and keeps it out for a time, 0 for good.
// The banned are told the reason. Only admins may.
func (c *Client) Ban(ctx context.Context, identity rpc.IdentityKey, reason string, d time.Duration) error {
	if d > 0 && d < time.Second {
		d = time.Second // 0 would be for good
	}
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewModerationClient(calls).BanUser(ctx, &qpcpb.BanUserRequest{
			IdentityKey: identity[:], Reason: reason, DurationSecs: uint64(max(0, d/time.Second)),
		})
		return err
	})
}

// Unban ends a ban. Only admins may.
func (c *Client) Unban(ctx context.Context, identity rpc.IdentityKey) error {
	return c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewModerationClient(calls).UnbanUser(ctx, &qpcpb.UnbanUserRequest{IdentityKey: identity[:]})
		return err
	})
}

// Banned returns the bans in force. Only admins may ask.
func (c *Client) Banned(ctx context.Context) (all []Ban, err error) {
	err = c.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		response, err := qpcpb.NewModerationClient(calls).ListBanned(ctx, &qpcpb.ListBannedRequest{})
		if err != nil {
			return err
		}
		for _, user := range response.Users {
			identity, err := rpc.ParseIdentityKey("identity_key", user.IdentityKey)
			if err != nil {
				return fmt.Errorf("%w: %w", rpc.ErrProtocol, err)
			}
			b := Ban{Identity: identity, Reason: user.Reason, Since: time.Unix(int64(user.BannedAt), 0)}
			if user.ExpiresAt != 0 {
				b.Until = time.Unix(int64(user.ExpiresAt), 0)
			}
			all = append(all, b)
		}
		return nil
	})
	return all, err
}
