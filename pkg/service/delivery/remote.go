package delivery

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// Arrival is a message that another server brings for somebody who lives here.
type Arrival struct {
	// Sender is who has sent it, or with FromHome what stands for the server.
	Sender    rpc.IdentityKey
	Recipient rpc.IdentityKey
	Channel   []byte // 16 bytes, or empty for the inbox
	Payload   []byte
	ID        rpc.MessageID
	ValidFor  time.Duration // 0 is as long as possible
	// FromHome says that the server sends it as the home of a group. Whoever
	// sets it has made sure that it is.
	FromHome bool
}

// ReceiveTx stores a message as Enqueue does: channels, blocks and limits are the
// same, and so is the answer to a repetition. It does not relay: a recipient who
// does not live here is USER_NOT_FOUND. An *rpc.Error says that the message is
// refused and that nothing was written.
func (s *Service) ReceiveTx(tx *store.Tx, a Arrival) (seq uint64, duplicate bool, err error) {
	m, err := s.arrived(a, MaxPayload)
	if err != nil {
		return 0, false, err
	}
	if err := s.livesHereTx(tx, a.Recipient); err != nil {
		return 0, false, err
	}
	m.payloadHash = sha256.Sum256(a.Payload)
	stored, err := s.enqueueTx(tx, m)
	return stored.seq, stored.duplicate, err
}

// ReceiveEphemeral hands a message to the recipient's live connections.
func (s *Service) ReceiveEphemeral(ctx context.Context, a Arrival) error {
	m, err := s.arrived(a, push.MaxEnvelope)
	if err != nil {
		return err
	}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error { return s.livesHereTx(tx, a.Recipient) })
	if err != nil {
		return err
	}
	return s.sendEphemeral(ctx, m)
}

func (s *Service) livesHereTx(tx *store.Tx, identity rpc.IdentityKey) error {
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeUserNotFound, "nobody here has this identity key")
	}
	return err
}

// arrived checks the form of an arrival.
func (s *Service) arrived(a Arrival, most int) (m message, err error) {
	m = message{
		sender: a.Sender, to: address{recipient: a.Recipient}, payload: a.Payload, id: a.ID, hasID: a.ID != rpc.MessageID{},
		validFor: int64(s.options.Limits.Retention / time.Second), fromHome: a.FromHome,
	}
	if m.to.id, m.to.inChannel, err = rpc.ParseChannelID("channel_id", a.Channel); err != nil {
		return m, err
	}
	if a.ValidFor > 0 {
		m.validFor = min(m.validFor, int64(a.ValidFor/time.Second))
	}
	return m, checkSize(a.Payload, most)
}
