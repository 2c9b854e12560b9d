package e2ee_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// The wire form of every type, written out by hand from PROTOCOL 9.
func wireCases() map[string]struct {
	message e2ee.Message
	hex     string
} {
	id := e2ee.MessageID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	const idHex = "0102030405060708090a0b0c0d0e0f10"
	blob, key := [32]byte{0xb1}, [32]byte{0x4e}
	zero31 := strings.Repeat("00", 31)
	return map[string]struct {
		message e2ee.Message
		hex     string
	}{
		"chat":         {e2ee.Message{Type: e2ee.TypeChat, ID: id, Text: "hé"}, "0101" + idHex + "000368c3a9"},
		"empty chat":   {e2ee.Message{Type: e2ee.TypeChat, ID: id}, "0101" + idHex + "0000"},
		"reply":        {e2ee.Message{Type: e2ee.TypeReply, Ref: id, Text: "a"}, "0102" + idHex + "000161"},
		"reaction":     {e2ee.Message{Type: e2ee.TypeReaction, Ref: id, Emoji: "👍"}, "0103" + idHex + "04f09f918d"},
		"read receipt": {e2ee.Message{Type: e2ee.TypeReadReceipt, Ref: id}, "0104" + idHex},
		"typing":       {e2ee.Message{Type: e2ee.TypeTyping, On: true}, "010501"},
		"not typing":   {e2ee.Message{Type: e2ee.TypeTyping}, "010500"},
		"edit":         {e2ee.Message{Type: e2ee.TypeEdit, Ref: id, Text: "b"}, "0106" + idHex + "000162"},
		"delete":       {e2ee.Message{Type: e2ee.TypeDelete, Ref: id}, "0107" + idHex},
		"file": {e2ee.Message{Type: e2ee.TypeFileRef, Blob: blob, Name: "f", Size: 258, MIME: "m/n", FileKey: &key, Thumbnail: []byte{7}},
			"0108b1" + zero31 + "000166" + "0000000000000102" + "00036d2f6e" + "0300204e" + zero31 + "04000107"},
		"dummy": {e2ee.Message{Type: e2ee.TypeDummy}, "0109"},
		"all tags": {e2ee.Message{Type: e2ee.TypeReply, Ref: id, ID: id, Text: "", SentAtMS: 0x0102030405060708, FileKey: &key, Thumbnail: []byte{}, Part: e2ee.PartLast},
			"0102" + idHex + "0000" + "0100080102030405060708" + "020010" + idHex + "0300204e" + zero31 + "040000" + "05000102"},
		"part": {e2ee.Message{Type: e2ee.TypeChat, ID: id, Text: "x", Part: e2ee.PartMore}, "0101" + idHex + "00017805000101"},
	}
}

func TestMessageWire(t *testing.T) {
	for name, tc := range wireCases() {
		got, err := tc.message.Encode()
		must(t, err)
		if hex.EncodeToString(got) != tc.hex {
			t.Errorf("%s: %x, want %s", name, got, tc.hex)
		}
		want, err := hex.DecodeString(tc.hex)
		must(t, err)
		back, err := e2ee.DecodeMessage(want)
		must(t, err)
		if diff := cmp.Diff(&tc.message, back); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		// Cut anywhere it is an error, or, where a tag or a dummy ends, a message.
		for n := range want {
			if cut, err := e2ee.DecodeMessage(want[:n]); err == nil {
				if again, err := cut.Encode(); err != nil || !bytes.Equal(again, want[:n]) {
					t.Errorf("%s cut to %d bytes is another message", name, n)
				}
			} else if !errors.Is(err, e2ee.ErrMalformed) {
				t.Errorf("%s cut to %d: %v", name, n, err)
			}
		}
	}
}

func TestMessageRefusals(t *testing.T) {
	id := strings.Repeat("00", 16)
	for name, text := range map[string]string{
		"nothing":               "",
		"one byte":              "01",
		"version 0":             "0001" + id + "0000",
		"version 2":             "0201" + id + "0000",
		"text too short":        "0101" + id + "00026100"[:6],
		"text not UTF-8":        "0101" + id + "0001ff",
		"text half a character": "0101" + id + "0001c3",
		"emoji not UTF-8":       "0103" + id + "01ff",
		"emoji too short":       "0103" + id + "0261",
		"typing 2":              "010502",
		"typing nothing":        "0105",
		"tag cut":               "0104" + id + "01",
		"tag length cut":        "0104" + id + "0100",
		"tag value cut":         "0104" + id + "010008010203",
		"unknown tag cut":       "0104" + id + "c8000201",
		"sent_at of 7":          "0104" + id + "010007" + "01020304050607",
		"sent_at of 9":          "0104" + id + "010009" + "010203040506070809",
		"own id of 15":          "0104" + id + "02000f" + id[2:],
		"chat own id of 15":     "0101" + id + "0000" + "02000f" + id[2:],
		"file key of 31":        "0104" + id + "03001f" + strings.Repeat("00", 31),
		"part 0":                "0104" + id + "05000100",
		"part 3":                "0104" + id + "05000103",
		"part empty":            "0104" + id + "050000",
		"sent_at twice":         "0104" + id + strings.Repeat("0100080102030405060708", 2),
	} {
		data, err := hex.DecodeString(text)
		must(t, err)
		if m, err := e2ee.DecodeMessage(data); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
	for name, m := range map[string]e2ee.Message{
		"text too long":      {Type: e2ee.TypeChat, Text: strings.Repeat("a", e2ee.MaxText+1)},
		"text not UTF-8":     {Type: e2ee.TypeChat, Text: "\xff"},
		"emoji too long":     {Type: e2ee.TypeReaction, Emoji: strings.Repeat("a", e2ee.MaxEmoji+1)},
		"emoji not UTF-8":    {Type: e2ee.TypeReaction, Emoji: "\xff"},
		"thumbnail too long": {Type: e2ee.TypeFileRef, Thumbnail: make([]byte, e2ee.MaxThumbnail+1)},
		"name too long":      {Type: e2ee.TypeFileRef, Name: strings.Repeat("a", e2ee.MaxText+1)},
		"part 3":             {Type: e2ee.TypeChat, Part: 3},
		"type 0":             {},
		"type 10":            {Type: 10},
	} {
		if _, err := m.Encode(); !errors.Is(err, e2ee.ErrMalformed) {
			t.Errorf("encoding %s: %v", name, err)
		}
	}
}

func TestUnknownParts(t *testing.T) {
	m, err := e2ee.DecodeMessage([]byte{1, 0x2a, 0xff, 0xfe})
	must(t, err)
	if m.Supported() || !bytes.Equal(m.Unsupported, []byte{0xff, 0xfe}) || m.Type.String() != "unsupported(0x2a)" {
		t.Errorf("unknown type: %+v", m)
	}
	data, err := hex.DecodeString("010501" + "c80003aabbcc" + "0100080000000000000001" + "000000")
	must(t, err)
	m, err = e2ee.DecodeMessage(data)
	must(t, err)
	if !m.On || m.SentAtMS != 1 {
		t.Errorf("unknown tags: %+v", m)
	}
}

func TestMessageRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &e2ee.Message{Type: e2ee.MessageType(rapid.IntRange(1, 8).Draw(t, "type"))}
		text := rapid.StringN(-1, -1, 2000).Draw(t, "text")
		m.Text, m.Name, m.MIME = text, text, text
		m.Emoji = rapid.StringN(-1, -1, e2ee.MaxEmoji).Draw(t, "emoji")
		m.On = rapid.Bool().Draw(t, "on")
		m.Size = rapid.Uint64().Draw(t, "size")
		m.SentAtMS = rapid.Uint64().Draw(t, "sent")
		m.Part = e2ee.Part(rapid.IntRange(0, 2).Draw(t, "part"))
		copy(m.Ref[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "ref"))
		copy(m.ID[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
		first, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := e2ee.DecodeMessage(first)
		if err != nil {
			t.Fatal(err)
		}
		second, err := back.Encode()
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%x became %x, %v", first, second, err)
		}
	})
}

func TestNewMessageID(t *testing.T) {
	random := bytes.NewReader(bytes.Repeat([]byte{0xff}, 10))
	now := time.UnixMilli(0x0123456789ab)
	id, err := e2ee.NewMessageID(random, now)
	must(t, err)
	if got := hex.EncodeToString(id[:]); got != "0123456789ab"+"7fff"+"bfff"+"ffffffffffff" {
		t.Error(got)
	}
	id, err = e2ee.NewMessageID(bytes.NewReader(make([]byte, 10)), time.Unix(-5, 0))
	must(t, err)
	if id[0] != 0 || id[5] != 0 {
		t.Errorf("before 1970: %x", id)
	}
	if _, err := e2ee.NewMessageID(empty{}, now); !errors.Is(err, errEmpty) {
		t.Error(err)
	}
}

func TestSplitText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String().Draw(t, "text")
		limit := rapid.IntRange(0, 40).Draw(t, "limit")
		pieces := e2ee.SplitText(text, limit)
		if strings.Join(pieces, "") != text {
			t.Fatal("the pieces are not the text")
		}
		for _, p := range pieces {
			if len(p) > max(limit, utf8.UTFMax) || !utf8.ValidString(p) || p == "" && text != "" {
				t.Fatalf("piece %q of %q", p, text)
			}
		}
	})
	if got := e2ee.SplitText("\x80\x80\x80\x80\x80\x80", 4); len(got) < 2 || strings.Join(got, "") != "\x80\x80\x80\x80\x80\x80" {
		t.Errorf("not UTF-8: %q", got)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, tc := range wireCases() {
		data, err := hex.DecodeString(tc.hex)
		must(f, err)
		f.Add(data)
	}
	f.Add([]byte{1, 0x2a, 1, 2, 3})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := e2ee.DecodeMessage(data)
		if err != nil {
			if !errors.Is(err, e2ee.ErrMalformed) {
				t.Fatal(err)
			}
			return
		}
		if !m.Supported() {
			return
		}
		encoded, err := m.Encode()
		if err != nil {
			t.Fatalf("%x decodes but does not encode: %v", data, err)
		}
		again, err := e2ee.DecodeMessage(encoded)
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Fatalf("%x: %+v, %+v, %v", data, m, again, err)
		}
	})
}
