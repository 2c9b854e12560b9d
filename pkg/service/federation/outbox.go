package federation

import (
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// RelayTx puts a message into the outbox of a peer. must is for what its
// recipient must not miss: it may fill the outbox to twice its bounds. An
// *rpc.Error says that the message is refused, and that nothing was written:
// DOMAIN_UNKNOWN, QUEUE_FULL.
func (s *Service) RelayTx(tx *store.Tx, domain string, m Message, must bool) error {
	p, ok := s.find(domain)
	if !ok {
		return unknownDomain(domain)
	}
	waits, err := s.loads.of(tx, loadOf{domain: domain})
	if err != nil {
		return err
	}
	times := int64(1)
	if must {
		times = 2
	}
	if !waits.fits(len(m.Payload), times, MaxQueued, MaxQueuedBytes) {
		return rpc.Errorf(qpcpb.CodeQueueFull, "too much waits for %s, which cannot be reached; try again later", domain)
	}
	r := &row{
		kind: kindMessage, token: m.ID, recipient: m.Recipient[:], channel: m.Channel, payload: m.Payload,
		validUntil: s.options.DB.ServiceTime() + int64(m.ValidFor/time.Second),
	}
	if !m.FromHome {
		r.sender = m.Sender[:]
		if !must {
			his, err := s.loads.of(tx, loadOf{domain, string(m.Sender[:])})
			if err != nil {
				return err
			}
			if !his.fits(len(m.Payload), 1, maxOfSender, maxOfSenderBytes) {
				return rpc.Errorf(qpcpb.CodeQueueFull, "too much of yours waits for %s, which cannot be reached; try again later", domain)
			}
		}
	}
	if r.token == (rpc.MessageID{}) {
		if r.token, err = s.token(); err != nil {
			return err
		}
	}
	return s.appendTx(tx, p, r)
}

// appendTx puts a row at the end of a peer's outbox.
func (s *Service) appendTx(tx *store.Tx, p *peer, r *row) error {
	r.size = len(r.payload)
	if err := insertRow(tx, p.domain, r); err != nil {
		return err
	}
	s.loads.change(tx, p.domain, r, 1)
	tx.AfterCommit(func() { nudge(p.rowsWait) })
	return nil
}

// token makes a name for a row.
func (s *Service) token() (t rpc.MessageID, err error) {
	if _, err := io.ReadFull(s.options.Rand, t[:]); err != nil {
		return t, fmt.Errorf("make a message id: %w", err)
	}
	return t, nil
}

// AnnounceGroupTx tells peers how a group of this server stands, in order with
// the messages that are relayed there. It refuses nothing: a state that waits,
// with no message of the group behind it, is replaced. A domain that is no peer
// is not told.
func (s *Service) AnnounceGroupTx(tx *store.Tx, domains []string, state *qpcpb.GroupState) error {
	payload, err := proto.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode the state of a group: %w", err)
	}
	for _, domain := range domains {
		p, ok := s.find(domain)
		if !ok {
			continue
		}
		token, err := s.token()
		if err != nil {
			return err
		}
		var last row
		err = tx.QueryRow(sqlLastOfGroup, domain, state.GroupId).Scan(&last.id, &last.kind)
		if err != nil && !errors.Is(err, store.ErrNoRows) {
			return fmt.Errorf("look for the last state of a group: %w", err)
		}
		if last.kind == kindState {
			// The new token keeps an acknowledgement of the old state, which
			// may be on its way, from deleting the new one.
			if _, err := tx.Exec(sqlReplace, token, len(payload), payload, last.id); err != nil {
				return fmt.Errorf("replace the state of a group: %w", err)
			}
			s.loads.forget()
			tx.AfterCommit(func() { nudge(p.rowsWait) })
			continue
		}
		r := &row{kind: kindState, token: token, channel: state.GroupId, payload: payload, validUntil: always}
		if err := s.appendTx(tx, p, r); err != nil {
			return err
		}
	}
	return nil
}

// LeaveTx tells the home of a group that a user of this server, whose account
// is deleted by this transaction, has left it. Until the home has been told,
// the row names the user.
func (s *Service) LeaveTx(tx *store.Tx, home string, group rpc.ChannelID, identity rpc.IdentityKey) error {
	p, ok := s.find(home)
	if !ok {
		return nil // nobody to tell
	}
	token, err := s.token()
	if err != nil {
		return err
	}
	return s.appendTx(tx, p, &row{kind: kindLeave, token: token, sender: identity[:], channel: group[:], validUntil: always})
}

// RelayEphemeral sends a message to a peer that is connected, or drops it.
func (s *Service) RelayEphemeral(domain string, m Message) {
	p, ok := s.find(domain)
	if !ok || p.live() == nil {
		return
	}
	select {
	case p.ephemeral <- m:
	default:
	}
}

// EraseTx removes what waits of an identity of this server, and takes it out of
// the states of groups that wait.
func (s *Service) EraseTx(tx *store.Tx, identity rpc.IdentityKey) error {
	s.loads.forget()
	tx.AfterRollback(s.loads.forget)
	if _, err := tx.Exec(sqlDropSender, identity); err != nil {
		return fmt.Errorf("remove what waits of an identity: %w", err)
	}
	if _, err := tx.Exec(sqlDropIdentity, identity); err != nil {
		return fmt.Errorf("forget where an identity lived: %w", err)
	}
	states := make(map[int64][]byte)
	rows, err := tx.Query(sqlStatesWith, identity)
	if err != nil {
		return fmt.Errorf("look for an identity in waiting states: %w", err)
	}
	for rows.Next() {
		var id int64
		var payload []byte
		if err := rows.Scan(&id, &payload); err != nil {
			return fmt.Errorf("look for an identity in waiting states: %w", err)
		}
		states[id] = payload
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("look for an identity in waiting states: %w", err)
	}
	for id, payload := range states {
		if payload, err = withoutMember(payload, identity); err != nil {
			return err
		}
		token, err := s.token()
		if err != nil {
			return err
		}
		if _, err := tx.Exec(sqlReplace, token, len(payload), payload, id); err != nil {
			return fmt.Errorf("take an identity out of a waiting state: %w", err)
		}
	}
	return nil
}

// withoutMember returns the state of a group without a member. The state that
// the group announces when its member leaves follows; until it arrives the copy
// may lack an owner, so the next member is one.
func withoutMember(payload []byte, identity rpc.IdentityKey) ([]byte, error) {
	state := &qpcpb.GroupState{}
	if err := proto.Unmarshal(payload, state); err != nil {
		return nil, fmt.Errorf("decode a waiting state: %w", err)
	}
	kept, owners := state.Members[:0], 0
	for _, m := range state.Members {
		if rpc.IdentityKey(m.IdentityKey) == identity {
			continue
		}
		kept = append(kept, m)
		if m.Owner {
			owners++
		}
	}
	if state.Members = kept; owners == 0 && len(kept) > 0 {
		kept[0].Owner = true
	}
	out, err := proto.Marshal(state)
	if err != nil {
		return nil, fmt.Errorf("encode a waiting state: %w", err)
	}
	return out, nil
}
