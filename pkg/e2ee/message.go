package e2ee

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// The application message inside MLS (PROTOCOL 9): 0x01 ‖ type ‖ body ‖ tags.
//
//	01 Chat         id16 len16 text
//	02 Reply        ref16 len16 text
//	03 Reaction     ref16 len8 emoji
//	04 ReadReceipt  ref16
//	05 Typing       u8 on
//	06 Edit         ref16 len16 text
//	07 Delete       ref16
//	08 FileRef      blob32 len16 name size64 len16 mime
//	09 Dummy        anything, or one tag 6 alone
//
// id16, ref16 and blob32 are that many bytes; len8, len16 and size64 are
// big-endian numbers of that many bits. A tag is tag8 len16 value.
const messageVersion = 0x01

// MessageType is the second byte of an application message.
type MessageType byte

// The message types.
const (
	TypeChat        MessageType = 0x01
	TypeReply       MessageType = 0x02
	TypeReaction    MessageType = 0x03
	TypeReadReceipt MessageType = 0x04
	TypeTyping      MessageType = 0x05
	TypeEdit        MessageType = 0x06
	TypeDelete      MessageType = 0x07
	TypeFileRef     MessageType = 0x08
	TypeDummy       MessageType = 0x09
)

// String names the type for logs; an unknown one is "unsupported(0x..)".
func (t MessageType) String() string {
	switch t {
	case TypeChat:
		return "chat"
	case TypeReply:
		return "reply"
	case TypeReaction:
		return "reaction"
	case TypeReadReceipt:
		return "read receipt"
	case TypeTyping:
		return "typing"
	case TypeEdit:
		return "edit"
	case TypeDelete:
		return "delete"
	case TypeFileRef:
		return "file"
	case TypeDummy:
		return "dummy"
	}
	return fmt.Sprintf("unsupported(0x%02x)", byte(t))
}

const (
	// MaxText is the longest text, file name or media type, in bytes.
	MaxText = 1<<16 - 1
	// MaxEmoji is the longest reaction, in bytes.
	MaxEmoji = 1<<8 - 1
	// MaxThumbnail is the longest thumbnail, in bytes.
	MaxThumbnail = 1<<16 - 1
)

// The tags.
const (
	tagSentAt    = 1 // u64, milliseconds
	tagOwnID     = 2 // 16 bytes
	tagFileKey   = 3 // 32 bytes
	tagThumbnail = 4
	tagPart      = 5 // u8
	tagGroupNote = 6 // u8 kind and its body; in a Dummy alone, see GroupNote
)

// Part says how a text that is longer than one message is spread over several.
type Part byte

const (
	// PartWhole: the message stands for itself. There is no tag on the wire.
	PartWhole Part = 0
	// PartMore: the text goes on in the sender's next message.
	PartMore Part = 1
	// PartLast: the last part of a text that is carried verbatim.
	PartLast Part = 2
)

// MessageID names a message: a UUIDv7 (RFC 9562).
type MessageID [16]byte

// NewMessageID makes a UUIDv7 from 10 random bytes and the time of sending. A
// time before 1970 counts as 1970.
func NewMessageID(random io.Reader, now time.Time) (MessageID, error) {
	var id MessageID
	if _, err := io.ReadFull(random, id[6:]); err != nil {
		return MessageID{}, fmt.Errorf("reading randomness for a message id: %w", err)
	}
	ms := uint64(max(now.UnixMilli(), 0))
	id[0], id[1], id[2] = byte(ms>>40), byte(ms>>32), byte(ms>>24)
	id[3], id[4], id[5] = byte(ms>>16), byte(ms>>8), byte(ms)
	id[6] = id[6]&0x0f | 0x70 // version 7
	id[8] = id[8]&0x3f | 0x80 // variant of RFC 9562
	return id, nil
}

// Message is an application message of any type. Which fields count depends on
// Type; Encode ignores the others, DecodeMessage leaves them zero.
type Message struct {
	Type MessageType

	ID    MessageID // Chat: its id. Others: their own id, if tag 2 was there.
	Ref   MessageID // Reply, Reaction, ReadReceipt, Edit, Delete: the message meant.
	Text  string    // Chat, Reply, Edit: valid UTF-8, at most MaxText bytes.
	Emoji string    // Reaction: valid UTF-8, at most MaxEmoji bytes.
	On    bool      // Typing: true when typing began.

	Blob [32]byte // FileRef: SHA-256 of the stored (encrypted) blob.
	Name string   // FileRef: file name as the sender called it. Never trust it as a path.
	Size uint64   // FileRef: bytes.
	MIME string   // FileRef: media type.

	SentAtMS  uint64    // Unix milliseconds by the sender's clock, 0 unknown.
	FileKey   *[32]byte // key of the blob, nil without.
	Thumbnail []byte    // small picture, nil without; at most MaxThumbnail bytes.
	Part      Part      // Chat, Reply, Edit: see Part.

	// Note is what a Dummy says to the program of another member, nil for none.
	Note *GroupNote

	// Unsupported holds everything after the type byte when Type is none of the
	// types above.
	Unsupported []byte
}

// Supported reports whether Type is one that this version knows. One that is not
// is shown as "unsupported message".
func (m *Message) Supported() bool { return m.Type >= TypeChat && m.Type <= TypeDummy }

// Encode gives the wire form. It fails on what DecodeMessage would refuse (text
// that is not UTF-8 or too long) and on types this version does not know.
func (m *Message) Encode() ([]byte, error) {
	if !m.Supported() {
		return nil, fmt.Errorf("encoding a message of type 0x%02x: %w", byte(m.Type), ErrMalformed)
	}
	e := messageEncoder{buf: []byte{messageVersion, byte(m.Type)}}
	switch m.Type {
	case TypeChat:
		e.raw(m.ID[:])
		e.text("text", m.Text)
	case TypeReply, TypeEdit:
		e.raw(m.Ref[:])
		e.text("text", m.Text)
	case TypeReaction:
		e.raw(m.Ref[:])
		e.emoji(m.Emoji)
	case TypeReadReceipt, TypeDelete:
		e.raw(m.Ref[:])
	case TypeTyping:
		e.bool(m.On)
	case TypeFileRef:
		e.raw(m.Blob[:])
		e.text("file name", m.Name)
		e.buf = binary.BigEndian.AppendUint64(e.buf, m.Size)
		e.text("media type", m.MIME)
	case TypeDummy:
		if m.Note != nil {
			e.note(m.Note)
		}
		return e.buf, e.err
	}
	if m.SentAtMS != 0 {
		e.tag(tagSentAt, binary.BigEndian.AppendUint64(nil, m.SentAtMS))
	}
	if m.Type != TypeChat && m.ID != (MessageID{}) {
		e.tag(tagOwnID, m.ID[:])
	}
	if m.FileKey != nil {
		e.tag(tagFileKey, m.FileKey[:])
	}
	if m.Thumbnail != nil {
		e.tag(tagThumbnail, m.Thumbnail)
	}
	switch {
	case m.Part > PartLast:
		e.fail("part state", int(m.Part))
	case m.Part != PartWhole:
		e.tag(tagPart, []byte{byte(m.Part)})
	}
	if e.err != nil {
		return nil, fmt.Errorf("encoding a %s message: %w", m.Type, e.err)
	}
	return e.buf, nil
}

// DecodeMessage parses the wire form. An unknown type is a Message with
// Unsupported set, not an error; unknown tags are skipped. Everything else that
// is not exactly as specified is ErrMalformed.
func DecodeMessage(data []byte) (*Message, error) {
	if len(data) < 2 {
		return nil, fmt.Errorf("application message of %d bytes: %w", len(data), ErrMalformed)
	}
	if data[0] != messageVersion {
		return nil, fmt.Errorf("application message of version %d, want %d: %w", data[0], messageVersion, ErrMalformed)
	}
	m := &Message{Type: MessageType(data[1])}
	if !m.Supported() {
		m.Unsupported = append([]byte{}, data[2:]...)
		return m, nil
	}
	d := messageDecoder{rest: data[2:]}
	switch m.Type {
	case TypeChat:
		d.array(m.ID[:])
		m.Text = d.text()
	case TypeReply, TypeEdit:
		d.array(m.Ref[:])
		m.Text = d.text()
	case TypeReaction:
		d.array(m.Ref[:])
		m.Emoji = d.string(d.number(1))
	case TypeReadReceipt, TypeDelete:
		d.array(m.Ref[:])
	case TypeTyping:
		on := d.number(1)
		if on > 1 {
			d.bad = true
		}
		m.On = on == 1
	case TypeFileRef:
		d.array(m.Blob[:])
		m.Name = d.text()
		m.Size = d.number(8)
		m.MIME = d.text()
	case TypeDummy:
		m.Note = decodeNote(data[2:]) // anything else in it means nothing
		return m, nil
	}
	if !d.bad {
		d.tags(m)
	}
	if d.bad {
		return nil, fmt.Errorf("application message, %s: %w", m.Type, ErrMalformed)
	}
	return m, nil
}

// SplitText cuts text into pieces of at most limit bytes, between characters, so
// that each is valid UTF-8 when text is. An empty text is one empty piece. A
// limit below utf8.UTFMax counts as utf8.UTFMax.
func SplitText(text string, limit int) []string {
	limit = max(limit, utf8.UTFMax)
	var pieces []string
	for len(text) > limit {
		cut := limit
		for cut > limit-(utf8.UTFMax-1) && !utf8.RuneStart(text[cut]) {
			cut--
		}
		if !utf8.RuneStart(text[cut]) {
			cut = limit // not UTF-8: anywhere is as good, but never at 0
		}
		pieces = append(pieces, text[:cut])
		text = text[cut:]
	}
	return append(pieces, text)
}

type messageEncoder struct {
	buf []byte
	err error
}

func (e *messageEncoder) raw(b []byte) { e.buf = append(e.buf, b...) }

func (e *messageEncoder) bool(v bool) {
	var b byte
	if v {
		b = 1
	}
	e.buf = append(e.buf, b)
}

func (e *messageEncoder) fail(what string, value int) {
	if e.err == nil {
		e.err = fmt.Errorf("%s %d is out of range: %w", what, value, ErrMalformed)
	}
}

func (e *messageEncoder) text(what, s string) {
	if len(s) > MaxText {
		e.fail(what+" length", len(s))
		return
	}
	e.utf8(what, s)
	e.buf = binary.BigEndian.AppendUint16(e.buf, uint16(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *messageEncoder) emoji(s string) {
	if len(s) > MaxEmoji {
		e.fail("reaction length", len(s))
		return
	}
	e.utf8("reaction", s)
	e.buf = append(e.buf, byte(len(s)))
	e.buf = append(e.buf, s...)
}

func (e *messageEncoder) utf8(what, s string) {
	if e.err == nil && !utf8.ValidString(s) {
		e.err = fmt.Errorf("%s is not UTF-8: %w", what, ErrMalformed)
	}
}

func (e *messageEncoder) tag(tag byte, value []byte) {
	if len(value) > MaxThumbnail {
		e.fail("tag length", len(value))
		return
	}
	e.buf = append(e.buf, tag)
	e.buf = binary.BigEndian.AppendUint16(e.buf, uint16(len(value)))
	e.buf = append(e.buf, value...)
}

// messageDecoder reads forward; after the first fault it is bad and gives zeros.
type messageDecoder struct {
	rest []byte
	bad  bool
}

func (d *messageDecoder) take(n uint64) []byte {
	if d.bad || n > uint64(len(d.rest)) {
		d.bad = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *messageDecoder) array(into []byte) { copy(into, d.take(uint64(len(into)))) }

func (d *messageDecoder) number(size uint64) uint64 {
	var n uint64
	for _, b := range d.take(size) {
		n = n<<8 | uint64(b)
	}
	return n
}

func (d *messageDecoder) string(n uint64) string {
	b := d.take(n)
	if !utf8.Valid(b) {
		d.bad = true
	}
	return string(b)
}

func (d *messageDecoder) text() string { return d.string(d.number(2)) }

// tags reads the tags to the end. A tag of ours that comes twice or has another
// size than its type is a fault: two readers must not see two messages.
func (d *messageDecoder) tags(m *Message) {
	var seen [tagPart + 1]bool
	for len(d.rest) > 0 && !d.bad {
		tag := d.number(1)
		value := d.take(d.number(2))
		if d.bad || tag == 0 || tag > tagPart {
			continue
		}
		if seen[tag] {
			d.bad = true
			return
		}
		seen[tag] = true
		v := messageDecoder{rest: value}
		switch tag {
		case tagSentAt:
			m.SentAtMS = v.number(8)
		case tagOwnID:
			if m.Type == TypeChat {
				v.take(uint64(len(m.ID))) // its id is in the body
			} else {
				v.array(m.ID[:])
			}
		case tagFileKey:
			m.FileKey = new([32]byte)
			v.array(m.FileKey[:])
		case tagThumbnail:
			m.Thumbnail = append([]byte{}, v.take(uint64(len(value)))...)
		case tagPart:
			m.Part = Part(v.number(1))
			if m.Part != PartMore && m.Part != PartLast {
				v.bad = true
			}
		}
		d.bad = v.bad || len(v.rest) > 0
	}
}
