package pieces_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/quicprochat/qpcd/cmd/qpc/internal/pieces"
)

func TestPiecesAreTheText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := strings.Join(rapid.SliceOf(rapid.SampledFrom([]string{"a", "é", "語", "👨‍👩‍👧", "\n", "\x00", strings.Repeat("x", 9)})).Draw(t, "text"), "")
		most := rapid.IntRange(utf8.UTFMax, 20).Draw(t, "max")
		var reader io.Reader = strings.NewReader(text)
		if rapid.Bool().Draw(t, "byte by byte") {
			reader = iotest.OneByteReader(reader)
		}
		var got strings.Builder
		lasts := 0
		err := pieces.Cutter{Max: most, Pause: time.Hour}.Cut(context.Background(), reader, func(piece string, last bool) error {
			if lasts > 0 {
				t.Fatal("a piece after the last")
			}
			if len(piece) > most || !utf8.ValidString(piece) {
				t.Fatalf("piece %q with a limit of %d", piece, most)
			}
			got.WriteString(piece)
			if last {
				lasts++
			}
			return nil
		})
		if err != nil || lasts != 1 || got.String() != text {
			t.Fatalf("got %q, %d last, %v; want %q", got.String(), lasts, err, text)
		}
	})
}

func TestNotText(t *testing.T) {
	for name, text := range map[string]string{"bad byte": "ab\xff", "cut off": "ab\xe8\xaa", "surrogate": "\xed\xa0\x80"} {
		t.Run(name, func(t *testing.T) {
			for _, reader := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text))} {
				if err := pieces.Check(reader); !errors.Is(err, pieces.ErrNotText) {
					t.Errorf("%v, want ErrNotText", err)
				}
			}
		})
	}
}

func TestPauseFlushes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, typed := io.Pipe()
		var got []string
		done := make(chan error, 1)
		go func() {
			done <- pieces.Cutter{Max: 100, Pause: time.Second}.Cut(t.Context(), in, func(piece string, last bool) error {
				got = append(got, piece)
				return nil
			})
		}()
		io.WriteString(typed, "hello \xe8\xaa") // a character cut off
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if len(got) != 1 || got[0] != "hello " {
			t.Fatalf("after a pause: %q", got)
		}
		io.WriteString(typed, "\x9e")
		typed.Close()
		if err := <-done; err != nil || len(got) != 2 || got[1] != "語" {
			t.Fatalf("at the end: %q, %v", got, err)
		}
	})
}
