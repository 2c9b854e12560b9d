package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// ledger writes messages to the output and remembers which were written.
//
// The mark is made after the output, so a crash between the two shows a message
// again rather than never. On a regular file even that does not happen: where
// and how much is to be written is stored first, and the next ledger on the
// same file looks how far that went.
type ledger struct {
	client *client.Client
	out    *os.File
	shown  client.Shown
}

// openLedger settles what a crash has left.
func openLedger(ctx context.Context, c *client.Client, out *os.File) (*ledger, error) {
	shown, err := c.Shown(ctx)
	if err != nil {
		return nil, err
	}
	if shown.Peers == nil {
		shown.Peers = make(map[string]client.Mark)
	}
	l := &ledger{client: c, out: out, shown: shown}
	if shown.Writing == nil {
		return l, nil
	}
	if err := l.settle(*shown.Writing); err != nil {
		return nil, fmt.Errorf("finishing an output that was cut off: %w", err)
	}
	l.shown.Writing = nil
	return l, c.SetShown(ctx, l.shown)
}

// settle decides about an output that a crash may have cut off. When it went
// elsewhere, nobody knows, and the messages are shown again.
func (l *ledger) settle(w client.Writing) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(l.out.Fd()), &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || uint64(st.Dev) != w.Device || st.Ino != w.Inode {
		return nil
	}
	switch {
	case st.Size >= w.Offset+w.Length:
		for key, mark := range w.Peers {
			if mark.UpTo > l.shown.Peers[key].UpTo { // a chat may have shown more since
				l.shown.Peers[key] = mark
			}
		}
	case st.Size > w.Offset:
		// A part of it is there, and nothing behind it.
		if err := l.out.Truncate(w.Offset); err != nil {
			return err
		}
		at, err := l.out.Seek(0, io.SeekCurrent)
		if err == nil && at > w.Offset {
			_, err = l.out.Seek(w.Offset, io.SeekStart)
		}
		return err
	}
	return nil
}

// anyOpen reports whether a text of any of the peers was shown in part; nil is
// of all.
func (l *ledger) anyOpen(peer *rpc.IdentityKey) bool {
	for key, mark := range l.shown.Peers {
		if mark.Open && (peer == nil || key == peer.String()) {
			return true
		}
	}
	return false
}

// isNew reports whether a message was not shown yet.
func (l *ledger) isNew(m client.Message) bool {
	return !m.Mine && m.No > l.shown.Peers[m.Conversation().Key()].UpTo
}

// write writes what render makes of messages, and marks them. open tells
// render that the message before it, of the same peer, was a part that goes on.
func (l *ledger) write(ctx context.Context, messages []client.Message, render func(m client.Message, open bool) ([]byte, error)) error {
	marks := maps.Clone(l.shown.Peers)
	var output []byte
	for _, m := range messages {
		key := m.Conversation().Key()
		rendered, err := render(m, marks[key].Open)
		if err != nil {
			return err
		}
		output = append(output, rendered...)
		marks[key] = client.Mark{UpTo: m.No, Open: goesOn(m, marks[key].Open)}
	}
	if err := l.announce(ctx, int64(len(output)), marks); err != nil {
		return err
	}
	if _, err := l.out.Write(output); err != nil {
		return fmt.Errorf("writing the messages: %w", err)
	}
	if l.shown.Writing != nil {
		if err := l.out.Sync(); err != nil {
			return fmt.Errorf("writing the messages: %w", err)
		}
	}
	l.shown = client.Shown{Peers: marks}
	return l.client.SetShown(ctx, l.shown)
}

// goesOn reports whether a text is open behind a message. What is no text,
// a reaction say, changes nothing.
func goesOn(m client.Message, open bool) bool {
	switch {
	case m.Part == e2ee.PartMore:
		return true
	case m.Part == e2ee.PartLast, m.Type == e2ee.TypeChat:
		return false
	}
	return open
}

// announce stores what is about to be written when the output is a regular
// file.
func (l *ledger) announce(ctx context.Context, length int64, marks map[string]client.Mark) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(l.out.Fd()), &st); err != nil {
		return fmt.Errorf("looking at the output: %w", err)
	}
	l.shown.Writing = nil
	if st.Mode&unix.S_IFMT != unix.S_IFREG || length == 0 {
		return nil
	}
	offset := st.Size
	flags, err := unix.FcntlInt(l.out.Fd(), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_APPEND == 0 {
		offset, err = l.out.Seek(0, io.SeekCurrent)
	}
	if err != nil {
		return fmt.Errorf("looking at the output: %w", err)
	}
	l.shown.Writing = &client.Writing{Device: uint64(st.Dev), Inode: st.Ino, Offset: offset, Length: length, Peers: marks}
	return l.client.SetShown(ctx, l.shown)
}
