package e2ee

import (
	"encoding/binary"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// GroupNote is what the clients of a group tell each other without their users
// seeing it. It rides in a Dummy, which every other client drops, as its only
// tag:
//
//	6 ‖ len16 ‖ kind8 ‖ body
//	kind 1 NoteInfo    revision64 ‖ name
//	kind 2 NoteLeave   nothing: the sender leaves
//	kind 3 NoteRejoin  group16: the sender has lost its place in that group
type GroupNote struct {
	Kind     NoteKind
	Name     string   // NoteInfo: see CheckGroupName
	Revision uint64   // NoteInfo: rises with every change of the name
	Group    [16]byte // NoteRejoin
}

// NoteKind says what a GroupNote tells.
type NoteKind byte

// The kinds of notes.
const (
	NoteInfo   NoteKind = 1
	NoteLeave  NoteKind = 2
	NoteRejoin NoteKind = 3
)

// MaxGroupName is the longest name of a group, in bytes.
const MaxGroupName = 128

// CheckGroupName says whether a name may be a group's: 1 to MaxGroupName bytes
// of UTF-8 that all show, as it stands on other people's terminals.
func CheckGroupName(name string) error {
	if name == "" || len(name) > MaxGroupName || !utf8.ValidString(name) {
		return fmt.Errorf("the name of a group has 1 to %d bytes: %w", MaxGroupName, ErrMalformed)
	}
	for _, r := range name {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("the name of a group has no control characters: %w", ErrMalformed)
		}
	}
	return nil
}

func (e *messageEncoder) note(n *GroupNote) {
	body := []byte{byte(n.Kind)}
	switch n.Kind {
	case NoteInfo:
		if err := CheckGroupName(n.Name); err != nil {
			e.err = err
			return
		}
		body = append(binary.BigEndian.AppendUint64(body, n.Revision), n.Name...)
	case NoteLeave:
	case NoteRejoin:
		body = append(body, n.Group[:]...)
	default:
		e.fail("note kind", int(n.Kind))
	}
	e.tag(tagGroupNote, body)
}

// decodeNote reads the body of a Dummy. What is not exactly a note is none.
func decodeNote(data []byte) *GroupNote {
	d := messageDecoder{rest: data}
	tag, body := d.number(1), d.take(d.number(2))
	if d.bad || len(d.rest) > 0 || tag != tagGroupNote || len(body) == 0 {
		return nil
	}
	n := &GroupNote{Kind: NoteKind(body[0])}
	d = messageDecoder{rest: body[1:]}
	switch n.Kind {
	case NoteInfo:
		n.Revision = d.number(8)
		n.Name = d.string(uint64(len(d.rest)))
		d.bad = d.bad || CheckGroupName(n.Name) != nil
	case NoteLeave:
	case NoteRejoin:
		d.array(n.Group[:])
	default:
		return nil
	}
	if d.bad || len(d.rest) > 0 {
		return nil
	}
	return n
}
