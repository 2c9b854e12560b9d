package e2ee

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/thomas-vilte/mls-go/ciphersuite"
	"github.com/thomas-vilte/mls-go/framing"
	"github.com/thomas-vilte/mls-go/group"
	"github.com/thomas-vilte/mls-go/secrettree"
)

const (
	suite    = ciphersuite.MLS128DHKEMX25519 // suite 0x0001
	hashSize = 32                            // its KDF.Nh

	// Sizes with their length: an Ed25519 signature, and a confirmation or
	// membership tag.
	signatureField = 2 + 64
	tagField       = 1 + hashSize
)

// epochKeys is all that is needed to read and write messages of one epoch. The
// work is mls-go's (framing.Encrypt, framing.Decrypt on its secret tree); what is
// added here is the memory of what was read, which mls-go loses when its state
// is stored.
type epochKeys struct {
	number     uint64
	context    []byte // serialised GroupContext, part of what is signed
	own        uint32 // our leaf
	roster     map[uint32]Credential
	senderData []byte                // sender_data_secret
	tree       *secrettree.TreeState // never changed, only replaced
	read       map[uint32]*[ratchetKinds]readMarks
	probe      *secrettree.Tree // made by header when first needed
}

// ratchetKind tells the two ratchets of a sender apart (RFC 9420, section 9.1).
type ratchetKind int

const (
	handshakeRatchet   ratchetKind = iota // proposals and commits
	applicationRatchet                    // application messages
	ratchetKinds
)

// readMarks remembers which generations of a ratchet were read: all below next
// but those in gaps.
type readMarks struct {
	next uint32
	gaps []gap // ascending, at most maxGaps
}

// gap is the generations from to to-1, which were jumped over.
type gap struct{ from, to uint32 }

// has reports whether a generation was read or given up.
func (m readMarks) has(generation uint32) bool {
	if generation >= m.next {
		return false
	}
	for _, g := range m.gaps {
		if g.from <= generation && generation < g.to {
			return false
		}
	}
	return true
}

// with returns the marks after a generation was read. Past maxGaps the oldest
// gap is given up: what was in it counts as read.
func (m readMarks) with(generation uint32) readMarks {
	after := readMarks{next: max(m.next, generation+1)}
	for _, g := range m.gaps {
		if generation < g.from || generation >= g.to {
			after.gaps = append(after.gaps, g)
			continue
		}
		if g.from < generation {
			after.gaps = append(after.gaps, gap{g.from, generation})
		}
		if generation+1 < g.to {
			after.gaps = append(after.gaps, gap{generation + 1, g.to})
		}
	}
	if generation > m.next {
		after.gaps = append(after.gaps, gap{m.next, generation})
	}
	if over := len(after.gaps) - maxGaps; over > 0 {
		after.gaps = after.gaps[over:]
	}
	return after
}

// parseMessage takes an MLSMessage apart. Exactly one of the results is not nil,
// unless there is an error.
func parseMessage(message []byte) (*framing.PrivateMessage, *framing.PublicMessage, error) {
	if len(message) > MaxMessageSize {
		return nil, nil, fmt.Errorf("MLS message of %d bytes: %w", len(message), ErrMalformed)
	}
	if bytes.HasPrefix(message, publicMessageHeader) {
		if err := checkPublicMessage(message); err != nil {
			return nil, nil, err
		}
	}
	var m *framing.MLSMessage
	err := guard(func() (err error) {
		if m, err = framing.UnmarshalMLSMessage(message); err != nil {
			return err
		}
		// mls-go ignores bytes that are left over.
		if !bytes.Equal(m.Marshal(), message) {
			return errors.New("encoding is not canonical")
		}
		return nil
	})
	if err != nil {
		return nil, nil, libraryError(ErrMalformed, err)
	}
	if pm, ok := m.AsPrivate(); ok {
		switch {
		case pm.ContentType < framing.ContentTypeApplication || pm.ContentType > framing.ContentTypeCommit:
			return nil, nil, fmt.Errorf("MLS content type %d: %w", pm.ContentType, ErrMalformed)
		case pm.ContentType != framing.ContentTypeApplication && len(pm.Ciphertext) > maxPrivateHandshakeSize:
			return nil, nil, fmt.Errorf("private handshake message of %d bytes: %w", len(pm.Ciphertext), ErrMalformed)
		}
		return pm, nil, nil
	}
	if pm, ok := m.AsPublic(); ok {
		return nil, pm, nil
	}
	return nil, nil, fmt.Errorf("MLS wire format %d is not a message for a group: %w", m.WireFormat(), ErrMalformed)
}

// publicMessageHeader begins an MLSMessage that is a PublicMessage: version
// mls10, wire format 1.
var publicMessageHeader = []byte{0, 1, 0, 1}

// checkPublicMessage refuses a PublicMessage whose body does not end where its
// signature begins. On one mls-go would try every byte for the end of the body,
// in quadratic time (seconds at 32 KiB, minutes beyond). What stands before the body and how
// long the body is come from mls-go's own encoding of what was read here, so that
// the two cannot differ.
func checkPublicMessage(message []byte) error {
	const beforeID, afterID = 5, 8 + 1 + 4 + 1 + 1 // epoch, sender, no authenticated data, content type
	malformed := fmt.Errorf("MLS public message of %d bytes: %w", len(message), ErrMalformed)
	if len(message) > maxHandshakeSize || len(message) <= beforeID || message[4] > maxGroupIDSize {
		return malformed
	}
	id, rest := message[beforeID:], []byte(nil)
	if int(message[4])+afterID >= len(id) {
		return malformed
	}
	id, rest = id[:message[4]], id[message[4]:]
	content := framing.FramedContent{
		GroupID: id,
		Epoch:   binary.BigEndian.Uint64(rest),
		Sender:  framing.Sender{Type: framing.SenderType(rest[8]), LeafIndex: binary.BigEndian.Uint32(rest[9:])},
	}
	// External senders and external commits need a GroupInfo or an extension that
	// no client of ours ever publishes.
	if content.Sender.Type != framing.SenderTypeMember {
		return fmt.Errorf("MLS public message from outside the group: %w", ErrNotAllowed)
	}
	tail := signatureField + tagField
	kind := framing.ContentType(rest[afterID-1])
	switch kind {
	case framing.ContentTypeProposal:
	case framing.ContentTypeCommit:
		tail += tagField
	default:
		return fmt.Errorf("MLS public message of content type %d: %w", kind, ErrNotAllowed)
	}
	if len(rest) < afterID+tail {
		return malformed
	}
	body, end := rest[afterID:len(rest)-tail], rest[len(rest)-tail:]
	for at := signatureField; at < tail; at += tagField {
		if end[at] != hashSize {
			return malformed
		}
	}
	var again []byte
	err := guard(func() error {
		if kind == framing.ContentTypeCommit {
			commit, err := group.UnmarshalCommit(body)
			if err == nil {
				content.Body = framing.CommitBody{Data: commit.Marshal()}
				again = content.Marshal()
			}
			return err
		}
		proposal, err := group.UnmarshalProposal(body)
		if err == nil {
			content.Body = framing.ProposalBody{Data: group.ProposalMarshal(proposal)}
			again = content.Marshal()
		}
		return err
	})
	if err != nil {
		return libraryError(ErrMalformed, err)
	}
	if !bytes.Equal(again, message[4:len(message)-tail]) || end[0] != 0x40 || end[1] != signatureField-2 {
		return malformed
	}
	return nil
}

// paddingFor is the block that pads an application message to the sizes of
// PROTOCOL 9. Measured is the whole PrivateMessageContent: the message with its
// length, the signature and the zeros. The ciphertext on the wire is 16 bytes
// longer, the MLSMessage about 70 more.
func paddingFor(message int) int {
	size := message + signatureField
	switch {
	case message < 1<<6: // lengths are 1, 2 or 4 bytes (RFC 9420, section 2.1.2)
		size++
	case message < 1<<14:
		size += 2
	default:
		size += 4
	}
	for _, block := range []int{256, 1 << 10, 4 << 10} {
		if size <= block {
			return block
		}
	}
	return 16 << 10
}

// seal signs, pads and encrypts an application message as an MLSMessage, and uses
// up one key of our ratchet.
func (k *epochKeys) seal(device *Device, groupID, data []byte) ([]byte, error) {
	tree, err := secrettree.UnmarshalFull(k.tree, suite)
	if err != nil {
		return nil, libraryError(ErrState, err)
	}
	var pm *framing.PrivateMessage
	err = guard(func() (err error) {
		pm, err = framing.Encrypt(framing.EncryptParams{
			Content: framing.FramedContent{
				GroupID:           groupID,
				Epoch:             k.number,
				Sender:            framing.Sender{Type: framing.SenderTypeMember, LeafIndex: k.own},
				AuthenticatedData: []byte{},
				Body:              framing.ApplicationData{Data: data},
			},
			SenderLeafIndex:  k.own,
			CipherSuite:      suite,
			PaddingSize:      paddingFor(len(data)),
			SenderDataSecret: ciphersuite.NewSecret(k.senderData),
			SecretTree:       tree,
			SigKey:           device.signer(),
			GroupContext:     k.context,
		})
		return err
	})
	if err != nil {
		return nil, libraryError(ErrState, err)
	}
	k.tree = tree.MarshalFull()
	return framing.NewMLSMessagePrivate(pm).Marshal(), nil
}

// header tells who sent a PrivateMessage and as its how-manieth, before anything
// is done that the sender could make costly: mls-go walks a ratchet as far as the
// sender says, up to 2^32 steps, and only then looks whether the message is real.
//
// mls-go does not hand out the sender data, but an error of its names both
// numbers. It is asked to decrypt with a tree whose leaves stand past the last
// generation, each at 2^32 plus its index; it opens the sender data (with its
// authentication) and gives up there. Should a new version word that error
// otherwise, every message is refused and the first test fails.
func (k *epochKeys) header(pm *framing.PrivateMessage) (leaf, generation uint32, err error) {
	const past = uint64(1) << 32
	if k.probe == nil {
		state := &secrettree.TreeState{
			EncryptionSecret: make([]byte, hashSize),
			LeafCount:        k.tree.LeafCount,
			LeafStates:       map[uint32]secrettree.LeafState{},
		}
		for i := range k.tree.LeafCount {
			state.LeafStates[i] = secrettree.LeafState{Generation: past + uint64(i)}
		}
		if k.probe, err = secrettree.UnmarshalFull(state, suite); err != nil {
			return 0, 0, libraryError(ErrState, err)
		}
	}
	err = guard(func() error {
		_, err := framing.Decrypt(pm, framing.DecryptParams{
			CipherSuite:      suite,
			SenderDataSecret: ciphersuite.NewSecret(k.senderData),
			SecretTree:       k.probe,
		})
		return err
	})
	if err == nil {
		return 0, 0, fmt.Errorf("message decrypts without a key: %w", ErrDecrypt)
	}
	_, words, _ := strings.Cut(err.Error(), ": generation ")
	var at uint64
	if n, _ := fmt.Sscanf(words, "%d already advanced past (current: %d)", &generation, &at); n != 2 || at < past {
		return 0, 0, fmt.Errorf("sender data: %w", libraryError(ErrDecrypt, err))
	}
	return uint32(at - past), generation, nil
}

// open decrypts and verifies a PrivateMessage of this epoch. The function it
// gives marks the message as read; before it is called nothing has changed.
func (k *epochKeys) open(pm *framing.PrivateMessage) (*framing.AuthenticatedContent, Credential, func(), error) {
	fail := func(err error) (*framing.AuthenticatedContent, Credential, func(), error) {
		return nil, Credential{}, nil, err
	}
	leaf, generation, err := k.header(pm)
	if err != nil {
		return fail(err)
	}
	who, ok := k.roster[leaf]
	switch {
	case leaf == k.own:
		return fail(ErrOwnMessage)
	case !ok:
		return fail(fmt.Errorf("sender is leaf %d, which is empty: %w", leaf, ErrDecrypt))
	}
	kind := handshakeRatchet
	if pm.ContentType == framing.ContentTypeApplication {
		kind = applicationRatchet
	}
	var marks [ratchetKinds]readMarks
	if m := k.read[leaf]; m != nil {
		marks = *m
	}
	at := k.tree.LeafStates[leaf].Generation
	late := uint64(generation) < at
	switch {
	case marks[kind].has(generation):
		return fail(ErrReplayed)
	case uint64(generation) > max(at, uint64(marks[kind].next))+maxForwardGenerations || generation == math.MaxUint32:
		return fail(fmt.Errorf("generation %d after %d: %w", generation, marks[kind].next, ErrTooFarAhead))
	case late && generation > maxLateGeneration:
		return fail(fmt.Errorf("late message of generation %d: %w", generation, ErrReplayed))
	}
	// mls-go moves both ratchets of a sender together and does not store the keys
	// it jumped over: a late message opens with a tree from the epoch's beginning.
	state := k.tree
	if late {
		state = &secrettree.TreeState{EncryptionSecret: k.tree.EncryptionSecret, LeafCount: k.tree.LeafCount}
	}
	tree, err := secrettree.UnmarshalFull(state, suite)
	if err != nil {
		return fail(libraryError(ErrState, err))
	}
	var ac *framing.AuthenticatedContent
	err = guard(func() (err error) {
		ac, err = framing.Decrypt(pm, framing.DecryptParams{
			CipherSuite:      suite,
			SenderDataSecret: ciphersuite.NewSecret(k.senderData),
			SecretTree:       tree,
			SigPubKey:        ciphersuite.NewMLSSignaturePublicKey(who.SignatureKey[:], suite.SignatureScheme()),
			GroupContext:     k.context,
		})
		return err
	})
	switch {
	case errors.Is(err, framing.ErrDecryptionFailed), errors.Is(err, framing.ErrVerificationFailed):
		return fail(libraryError(ErrDecrypt, err))
	case err != nil:
		return fail(libraryError(ErrMalformed, err))
	}
	return ac, who, func() {
		if !late {
			k.tree = tree.MarshalFull()
		}
		marks[kind] = marks[kind].with(generation)
		k.read[leaf] = &marks
	}, nil
}
