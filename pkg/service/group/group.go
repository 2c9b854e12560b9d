// Package group keeps who shares a conversation: now channels, which are pairs
// (method 400), later also groups.
//
// What it promises:
//
//   - There is one channel for each unordered pair of identities, with one id
//     that both get. The id is random and tells nothing of the pair.
//   - Of all calls that ask for a channel, exactly one is told that it is new;
//     that caller starts the MLS group.
//   - Whoever is not in a channel cannot tell it from one that does not exist.
//
// Blocking does not show here: a channel can be made with somebody who has
// blocked the caller, as delivery then accepts and drops (PROTOCOL 7.3).
//
// An identity is in at most 4,096 channels. Nothing here expires; a channel
// goes with either of its accounts.
//
// State: one table.
package group

import (
	"context"
	"io"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// MaxChannels is how many channels an identity may be in. It bounds the work
// of telling presence, and what strangers can make the server keep about
// somebody: about 600 KiB.
const MaxChannels = 4096

// Accounts knows who has an account.
type Accounts interface {
	ExistsTx(tx *store.Tx, identity rpc.IdentityKey) (bool, error)
}

// Options says what a Service is made of. All are needed.
type Options struct {
	DB       *store.DB
	Accounts Accounts
	// Random makes channel ids; crypto/rand.Reader but in tests.
	Random io.Reader
}

// Service answers ChannelService. It is safe for concurrent use.
type Service struct{ options Options }

// New returns a Service.
func New(options Options) *Service { return &Service{options: options} }

// MembersTx returns the two members of a channel, or none when there is no
// such channel.
func (s *Service) MembersTx(tx *store.Tx, channel rpc.ChannelID) ([]rpc.IdentityKey, error) {
	return readMembers(tx, channel)
}

// BothMembersTx checks that sender may write to recipient in a channel. It
// returns CHANNEL_NOT_FOUND when there is no such channel or the sender is not
// in it, and CHANNEL_ACCESS_DENIED when the recipient is not.
func (s *Service) BothMembersTx(tx *store.Tx, channel rpc.ChannelID, sender, recipient rpc.IdentityKey) error {
	members, err := readMembers(tx, channel)
	if err != nil {
		return err
	}
	switch {
	case !contains(members, sender):
		return rpc.Errorf(qpcpb.CodeChannelNotFound, "no channel of yours has this id; create one with the recipient")
	case !contains(members, recipient):
		return rpc.Errorf(qpcpb.CodeChannelAccessDenied, "the recipient is not in this channel; create one with them")
	}
	return nil
}

// ContactsTx returns those who share a channel with an identity, at most
// MaxChannels of them.
func (s *Service) ContactsTx(tx *store.Tx, identity rpc.IdentityKey) ([]rpc.IdentityKey, error) {
	return readContacts(tx, identity, MaxChannels)
}

// Contacts is ContactsTx in a transaction of its own; it fits
// push.Options.Contacts.
func (s *Service) Contacts(ctx context.Context, identity rpc.IdentityKey) (contacts []rpc.IdentityKey, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		contacts, err = s.ContactsTx(tx, identity)
		return err
	})
	return contacts, err
}

// EraseTx removes every channel of an identity, for its peers too.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	return deleteOf(tx, identity)
}
