package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/client"
	"github.com/quicprochat/qpcd/pkg/e2ee"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/username"
)

type usersCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

type userJSON struct {
	Name        string     `json:"name"`
	IdentityKey string     `json:"identity_key"`
	Online      bool       `json:"online"`
	LastSeen    *time.Time `json:"last_seen,omitempty"`
}

func (cmd *usersCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	users, err := s.Users(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		all := make([]userJSON, len(users))
		for i, u := range users {
			all[i] = userJSON{Name: u.Name, IdentityKey: u.Identity.String(), Online: u.Online, LastSeen: when(fromUnix(u.LastSeen))}
		}
		return a.json(all)
	}
	rows := [][]string{{"NAME", "SEEN"}}
	for _, u := range users {
		seen := ago(fromUnix(u.LastSeen))
		if u.Online {
			seen = "online"
		}
		if u.Identity == s.Identity() {
			seen = "you"
		}
		rows = append(rows, []string{u.Name, seen})
	}
	return a.table(rows)
}

// fromUnix is a time of the wire; 0 is none.
func fromUnix(seconds uint64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(int64(seconds), 0)
}

// ago says when something was, as people do.
func ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	switch d := time.Since(t); {
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", d/time.Minute)
	case d < 24*time.Hour:
		return fmt.Sprintf("%d h ago", d/time.Hour)
	}
	return t.Format(time.DateOnly)
}

// known returns a contact by name from what this machine knows.
func (s *session) known(ctx context.Context, name string) (client.Contact, error) {
	who, err := username.ParseAddress(name)
	if err != nil {
		return client.Contact{}, err
	}
	folded := who.String()
	all, err := s.Contacts(ctx)
	if err != nil {
		return client.Contact{}, err
	}
	for _, c := range all {
		if c.Name == folded {
			return c, nil
		}
	}
	return client.Contact{}, fmt.Errorf("%s has not spoken with %s yet", s.profile.Name, folded)
}

type historyCmd struct {
	Name  string `arg:"" help:"Whose conversation."`
	Limit int    `placeholder:"N" help:"Only the last N messages."`
	JSON  bool   `name:"json" help:"Print JSON, one object for each message."`
}

func (cmd *historyCmd) Run(ctx context.Context, a *app) error {
	if cmd.Limit < 0 {
		return usageError{errors.New("--limit is a number from 1 on; 0 is all")}
	}
	s, err := a.open(ctx, cmd.Name)
	if err != nil {
		return err
	}
	defer s.close()
	peer, err := s.known(ctx, cmd.Name)
	if err != nil {
		return err
	}
	show := func(m client.Message) error {
		if cmd.JSON {
			return a.json(newMessageJSON(m, peer.Name))
		}
		return a.historyLine(m, s.profile.Name, peer.Name)
	}
	if cmd.Limit == 0 {
		var failed error
		err := s.History(ctx, peer.Identity, 0, func(m client.Message) bool {
			failed = show(m)
			return failed == nil
		})
		return errors.Join(err, failed)
	}
	last, err := s.last(ctx, peer.Identity, cmd.Limit)
	for _, m := range last {
		err = errors.Join(err, show(m))
	}
	return err
}

// last returns the last messages of a conversation.
func (s *session) last(ctx context.Context, peer rpc.IdentityKey, limit int) ([]client.Message, error) {
	var kept []client.Message
	err := s.History(ctx, peer, 0, func(m client.Message) bool {
		if kept = append(kept, m); len(kept) >= 2*limit { // moving is rare, and memory bounded
			kept = append(kept[:0], kept[len(kept)-limit:]...)
		}
		return true
	})
	return kept[max(0, len(kept)-limit):], err
}

func (a *app) historyLine(m client.Message, me, peer string) error {
	from, note := peer, ""
	at := m.SentAt
	if m.Mine {
		from = me
		note = map[client.Status]string{
			client.StatusQueued: "  (waits)", client.StatusSent: "  ✓", client.StatusRead: "  ✓✓", client.StatusFailed: "  (not sent: " + m.Problem + ")",
		}[m.Status]
		m.Problem = ""
	} else if at.IsZero() {
		at = m.Stored
	}
	text := strings.TrimSuffix(inWords(m), "\n")
	if isTerminal(a.out) {
		text = forTerminal(text)
	}
	_, err := fmt.Fprintf(a.out, "%s %s: %s%s\n", at.Local().Format("2006-01-02 15:04"), from, text, note)
	return err
}

type verifyCmd struct {
	Name   string `arg:"" help:"Whom to verify."`
	Mark   bool   `xor:"what" help:"Note that the numbers were compared and are the same."`
	Unmark bool   `xor:"what" help:"Take that note back."`
	Accept bool   `xor:"what" help:"Accept the new key of somebody whose key has changed."`
}

func (cmd *verifyCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, cmd.Name)
	if err != nil {
		return err
	}
	defer s.close()
	find := s.LookUp
	if cmd.Accept {
		find = s.AcceptIdentity
	}
	peer, err := find(ctx, cmd.Name)
	if isType[*unreachableError](err) && !cmd.Accept {
		offline := err
		if peer, err = s.known(ctx, cmd.Name); err != nil {
			return offline
		}
		a.note("%v; this is the key known so far", offline)
	}
	if err != nil {
		return err
	}
	if cmd.Mark || cmd.Unmark {
		if err := s.SetVerified(ctx, peer.Identity, cmd.Mark); err != nil {
			return err
		}
		peer.Verified = cmd.Mark
	}
	if cmd.Accept {
		fmt.Fprintf(a.out, "The key that the server now gives for %s is accepted.\n\n", peer.Name)
	}
	fmt.Fprintf(a.out, "Safety number of %s and %s:\n\n", s.profile.Name, peer.Name)
	for line := range strings.Lines(e2ee.GroupSafetyNumber(s.SafetyNumber(peer.Identity))) {
		fmt.Fprintf(a.out, "    %s", line)
	}
	fmt.Fprint(a.out, "\n\n")
	err = a.table([][]string{
		{"Key of " + s.profile.Name, joinWords(keyWords(s.Identity()))},
		{"Key of " + peer.Name, joinWords(keyWords(peer.Identity))},
		{"Verified", map[bool]string{true: "yes", false: "no"}[peer.Verified]},
	})
	if !peer.Verified {
		fmt.Fprintf(a.out, "\nLet %s run qpc verify %s and read the number to each other, not over this chat.\nIf it is the same: qpc verify %s --mark\n", peer.Name, s.profile.Name, peer.Name)
	}
	return err
}

type devicesCmd struct {
	List   deviceListCmd   `cmd:"" default:"withargs" help:"List the devices of the account."`
	Revoke deviceRevokeCmd `cmd:"" help:"Make a device lose access to the account."`
}

type deviceListCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

type deviceJSON struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Registered *time.Time `json:"registered_at,omitempty"`
	LastSeen   *time.Time `json:"last_seen,omitempty"`
	This       bool       `json:"this_device"`
}

func (s *session) devices(ctx context.Context) (all []deviceJSON, err error) {
	err = s.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		response, err := qpcpb.NewDeviceClient(calls).ListDevices(ctx, &qpcpb.ListDevicesRequest{})
		if err != nil {
			return err
		}
		own := s.DeviceID()
		for _, d := range response.Devices {
			id := fmt.Sprintf("%x", d.DeviceId)
			all = append(all, deviceJSON{ID: id, Name: d.DeviceName, Registered: when(fromUnix(d.RegisteredAt)), LastSeen: when(fromUnix(d.LastSeen)), This: id == own.String()})
		}
		return nil
	})
	return all, err
}

func (cmd *deviceListCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	devices, err := s.devices(ctx)
	if err != nil {
		return err
	}
	if cmd.JSON {
		return a.json(append([]deviceJSON{}, devices...))
	}
	rows := [][]string{{"ID", "NAME", "SEEN", ""}}
	for _, d := range devices {
		seen, this := "never", ""
		if d.LastSeen != nil {
			seen = ago(*d.LastSeen)
		}
		if d.This {
			this = "this device"
		}
		rows = append(rows, []string{d.ID, forTerminal(d.Name), seen, this})
	}
	return a.table(rows)
}

type deviceRevokeCmd struct {
	ID string `arg:"" help:"The id of the device, or the beginning of it."`
}

func (cmd *deviceRevokeCmd) Run(ctx context.Context, a *app) error {
	s, err := a.open(ctx, "")
	if err != nil {
		return err
	}
	defer s.close()
	devices, err := s.devices(ctx)
	if err != nil {
		return err
	}
	var found []deviceJSON
	for _, d := range devices {
		if strings.HasPrefix(d.ID, strings.ToLower(cmd.ID)) {
			found = append(found, d)
		}
	}
	if len(found) != 1 || cmd.ID == "" {
		return withHint(fmt.Errorf("%d devices have an id that begins with %q", len(found), cmd.ID), "qpc devices lists them")
	}
	id, err := hex.DecodeString(found[0].ID)
	if err != nil {
		return fmt.Errorf("reading the device's id: %w", err)
	}
	err = s.Call(ctx, func(ctx context.Context, calls *rpc.Client) error {
		_, err := qpcpb.NewDeviceClient(calls).RevokeDevice(ctx, &qpcpb.RevokeDeviceRequest{DeviceId: id})
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "The device %s (%s) is revoked.\n", found[0].ID, forTerminal(found[0].Name))
	return nil
}
