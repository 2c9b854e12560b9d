package moderation_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/service/moderation"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const day = 24 * time.Hour

// accounts are the accounts of the house, whose sessions end as auth ends them.
type accounts struct {
	*servicetest.Accounts
	house *servicetest.House
	mu    sync.Mutex
	ended []rpc.IdentityKey
}

func (a *accounts) EndSessionsTx(ctx context.Context, tx *store.Tx, identity rpc.IdentityKey, code transport.CloseCode, reason string) error {
	tx.AfterCommit(func() {
		a.mu.Lock()
		a.ended = append(a.ended, identity)
		a.mu.Unlock()
		a.house.Hub.EndSessions(ctx, identity, func(*rpc.Principal) bool { return true }, code, reason)
	})
	return nil
}

type house struct {
	*servicetest.House
	moderation *moderation.Service
	accounts   *accounts
}

// open opens a house with admins called root and carol, of whom root has an
// account.
func open(t *testing.T) house {
	h := house{House: servicetest.New(t)}
	h.accounts = &accounts{Accounts: h.House.Accounts, house: h.House}
	h.moderation = moderation.New(moderation.Options{
		DB: h.DB, Accounts: h.accounts, Now: h.Wall.Now, Admins: []rpc.IdentityKey{servicetest.Key("carol"), servicetest.Key("root")},
	})
	qpcpb.RegisterModerationServer(h.Server, h.moderation)
	h.Open()
	return h
}

type person struct {
	*servicetest.Client
	qpcpb.ModerationClient
	t *testing.T
}

func (h house) person(t *testing.T, name string) person {
	c := h.Connect(name)
	return person{c, qpcpb.NewModerationClient(c), t}
}

func (h house) admin(t *testing.T, name string) person {
	h.Accounts.Add(name)
	c := h.ConnectAs(rpc.Principal{Identity: servicetest.Key(name), Username: name, Admin: true})
	return person{c, qpcpb.NewModerationClient(c), t}
}

// owner is at the control socket.
func (h house) owner(t *testing.T) person {
	conn, server := rpctest.Pipe(rpctest.Options{})
	var serving sync.WaitGroup
	serving.Go(func() { h.Server.ServeLocal(server) })
	t.Cleanup(func() {
		_ = conn.Close(transport.CloseNormal, "")
		serving.Wait()
	})
	return person{nil, qpcpb.NewModerationClient(rpc.NewClient(conn)), t}
}

func (p person) reports(report []byte) error {
	p.t.Helper()
	got, err := p.ReportMessage(servicetest.Within(p.t), &qpcpb.ReportMessageRequest{EncryptedReport: report})
	if err == nil && !got.Accepted {
		p.t.Error("the report was not accepted")
	}
	return err
}

func (p person) listReports(limit, offset uint32) []*qpcpb.ReportEntry {
	p.t.Helper()
	got, err := p.ListReports(servicetest.Within(p.t), &qpcpb.ListReportsRequest{Limit: limit, Offset: offset})
	if err != nil {
		p.t.Fatal(err)
	}
	return got.Reports
}

func (p person) bans(name, reason string, seconds uint64) error {
	_, err := p.BanUser(servicetest.Within(p.t), &qpcpb.BanUserRequest{IdentityKey: servicetest.Bytes(name), Reason: reason, DurationSecs: seconds})
	return err
}

func (p person) unbans(name string) error {
	_, err := p.UnbanUser(servicetest.Within(p.t), &qpcpb.UnbanUserRequest{IdentityKey: servicetest.Bytes(name)})
	return err
}

func (p person) listBanned() []*qpcpb.BannedUserEntry {
	p.t.Helper()
	got, err := p.ListBanned(servicetest.Within(p.t), &qpcpb.ListBannedRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	return got.Users
}

// mayLogIn asks what auth asks.
func (h house) mayLogIn(t *testing.T, name string) (err error) {
	t.Helper()
	if e := h.DB.Read(t.Context(), func(tx *store.Tx) error {
		err = h.moderation.MayLogInTx(tx, servicetest.Key(name))
		return nil
	}); e != nil {
		t.Fatal(e)
	}
	return err
}

func TestReports(t *testing.T) {
	h := open(t)
	alice := h.person(t, "alice")
	conversation := bytes.Repeat([]byte{7}, 16)
	report := func() *qpcpb.ReportMessageResponse {
		t.Helper()
		got, err := alice.ReportMessage(servicetest.Within(t), &qpcpb.ReportMessageRequest{EncryptedReport: []byte("sealed"), ConversationId: conversation})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	keys := func() [][]byte {
		t.Helper()
		got, err := alice.ListReportKeys(servicetest.Within(t), &qpcpb.ListReportKeysRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return got.IdentityKeys
	}
	if report().Accepted || len(keys()) != 0 || h.Count("moderation_report") != 0 {
		t.Error("a report that nobody can read is kept")
	}
	root := h.admin(t, "root")
	if got := keys(); len(got) != 1 || !bytes.Equal(got[0], servicetest.Bytes("root")) {
		t.Errorf("reports are for %x", got)
	}
	if !report().Accepted {
		t.Error("a report is not accepted")
	}
	h.Wall.Advance(time.Hour)
	servicetest.WantCode(t, alice.reports([]byte("second")), qpcpb.CodeUnspecified)

	for _, who := range []person{root, h.owner(t)} {
		got := who.listReports(0, 0)
		if len(got) != 2 {
			t.Fatalf("%d reports", len(got))
		}
		first, second := got[0], got[1]
		if string(first.EncryptedReport) != "sealed" || !bytes.Equal(first.ConversationId, conversation) ||
			!bytes.Equal(first.ReporterIdentity, servicetest.Bytes("alice")) || first.Timestamp != uint64(h.Wall.Now().Add(-time.Hour).Unix()) {
			t.Errorf("got %v", first)
		}
		if string(second.EncryptedReport) != "second" || len(second.ConversationId) != 0 || second.Id <= first.Id {
			t.Errorf("got %v", second)
		}
	}
	if got := root.listReports(1, 1); len(got) != 1 || string(got[0].EncryptedReport) != "second" {
		t.Errorf("the second page is %v", got)
	}
	if got := root.listReports(5, 1<<32-1); len(got) != 0 {
		t.Errorf("far behind the end: %v", got)
	}

	// 90 days later they are gone, first from sight, then from the disk.
	h.Service.Advance(90*day - time.Second)
	if got := root.listReports(0, 0); len(got) != 2 {
		t.Errorf("%d reports in their last second", len(got))
	}
	h.Service.Advance(time.Second)
	if got := root.listReports(0, 0); len(got) != 0 {
		t.Errorf("%d reports after their time", len(got))
	}
	if more, err := h.moderation.Sweep(t.Context()); more || err != nil || h.Count("moderation_report") != 0 {
		t.Errorf("swept: more %v, %v, %d left", more, err, h.Count("moderation_report"))
	}
}

func TestReportLimits(t *testing.T) {
	h := open(t)
	root := h.admin(t, "root")
	alice, bob := h.person(t, "alice"), h.person(t, "bob")
	servicetest.WantCode(t, alice.reports(nil), qpcpb.CodeReportEmpty)
	servicetest.WantCode(t, alice.reports(make([]byte, moderation.MaxReport+1)), qpcpb.CodePayloadTooLarge)
	for range moderation.MaxReportsOfOne {
		servicetest.WantCode(t, alice.reports(make([]byte, moderation.MaxReport)), qpcpb.CodeUnspecified)
	}
	servicetest.WantCode(t, alice.reports([]byte("x")), qpcpb.CodeReportLimit)
	servicetest.WantCode(t, bob.reports([]byte("x")), qpcpb.CodeUnspecified)
	h.Write(func(tx *store.Tx) error {
		for i := range moderation.MaxReports - moderation.MaxReportsOfOne - 1 {
			_, err := tx.Exec(`INSERT INTO moderation_report (reporter_key, conversation_id, report, reported_at, valid_until) VALUES (?, ?, zeroblob(?), 0, ?)`,
				servicetest.Bytes(fmt.Sprint(i)), []byte{}, moderation.MaxReport, int64(1)<<40)
			if err != nil {
				return err
			}
		}
		return nil
	})
	servicetest.WantCode(t, bob.reports([]byte("x")), qpcpb.CodeReportLimit)
	seen := map[uint64]bool{}
	for offset := uint32(0); ; {
		page := root.listReports(0, offset)
		if len(page) == 0 {
			break
		}
		if len(page) != moderation.MaxPage {
			t.Fatalf("a page of %d", len(page))
		}
		for _, r := range page {
			seen[r.Id] = true
		}
		offset += uint32(len(page))
	}
	if len(seen) != moderation.MaxReports {
		t.Errorf("%d reports in all", len(seen))
	}
	h.Accounts.Remove("bob") // deleted while a call is on its way
	servicetest.WantCode(t, bob.reports([]byte("x")), qpcpb.CodeUnauthenticated)
}

// A ban ends the sessions at once, and stands until its time is over.
func TestBan(t *testing.T) {
	h := open(t)
	root, alice := h.admin(t, "root"), h.person(t, "alice")
	if err := h.mayLogIn(t, "alice"); err != nil {
		t.Fatal(err)
	}
	servicetest.WantCode(t, root.bans("alice", "too loud", 3600), qpcpb.CodeUnspecified)
	event := alice.Event()
	var ended qpcpb.SessionEnded
	if err := proto.Unmarshal(event.Payload, &ended); err != nil || event.Kind != qpcpb.EventSessionEnded || !strings.Contains(ended.Reason, "too loud") {
		t.Errorf("got %s %v (%v)", event.Kind, &ended, err)
	}
	<-alice.Conn().Context().Done()
	var closed *transport.ClosedError
	if _, err := alice.Conn().OpenStream(context.Background()); !errors.As(err, &closed) || closed.Code != transport.CloseBanned {
		t.Errorf("the connection ended with %v", err)
	}
	err := h.mayLogIn(t, "alice")
	servicetest.WantCode(t, err, qpcpb.CodeUserBanned)
	if !strings.Contains(err.Error(), "too loud") || !strings.Contains(err.Error(), "until") {
		t.Errorf("the banned one is told %q", err)
	}
	got := root.listBanned()
	if len(got) != 1 || !bytes.Equal(got[0].IdentityKey, servicetest.Bytes("alice")) || got[0].Reason != "too loud" ||
		got[0].BannedAt != uint64(h.Wall.Now().Unix()) || got[0].ExpiresAt != uint64(h.Wall.Now().Unix()+3600) {
		t.Errorf("the bans are %v", got)
	}

	// The wall clock may jump as it likes.
	h.Wall.Advance(365 * day)
	servicetest.WantCode(t, h.mayLogIn(t, "alice"), qpcpb.CodeUserBanned)
	h.Service.Advance(time.Hour - time.Second)
	servicetest.WantCode(t, h.mayLogIn(t, "alice"), qpcpb.CodeUserBanned)
	h.Service.Advance(time.Second)
	if err := h.mayLogIn(t, "alice"); err != nil {
		t.Errorf("after the ban: %v", err)
	}
	if got := root.listBanned(); len(got) != 0 {
		t.Errorf("the bans are %v", got)
	}
	servicetest.WantCode(t, root.unbans("alice"), qpcpb.CodeBanNotFound)
	if more, err := h.moderation.Sweep(t.Context()); more || err != nil || h.Count("moderation_ban") != 0 {
		t.Errorf("swept: more %v, %v, %d left", more, err, h.Count("moderation_ban"))
	}
}

func TestBansReplaceAndEnd(t *testing.T) {
	h := open(t)
	root := h.admin(t, "root")
	h.Accounts.Add("alice")
	servicetest.WantCode(t, root.bans("alice", "once", 60), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, h.owner(t).bans("alice", "", 0), qpcpb.CodeUnspecified)
	got := root.listBanned()
	if len(got) != 1 || got[0].Reason != "" || got[0].ExpiresAt != 0 {
		t.Errorf("the bans are %v", got)
	}
	h.Service.Advance(200 * 365 * day)
	err := h.mayLogIn(t, "alice")
	servicetest.WantCode(t, err, qpcpb.CodeUserBanned)
	if !strings.HasSuffix(strings.TrimSuffix(err.Error(), " (USER_BANNED)"), "for good") {
		t.Errorf("the banned one is told %q", err)
	}
	if more, err := h.moderation.Sweep(t.Context()); more || err != nil || h.Count("moderation_ban") != 1 {
		t.Error("a permanent ban was swept")
	}
	servicetest.WantCode(t, root.unbans("alice"), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, root.unbans("alice"), qpcpb.CodeBanNotFound)
	if err := h.mayLogIn(t, "alice"); err != nil {
		t.Error(err)
	}
	// Longer than anybody lives is 100 years.
	servicetest.WantCode(t, root.bans("alice", "", 1<<64-1), qpcpb.CodeUnspecified)
	if got := root.listBanned()[0].ExpiresAt; got != uint64(h.Wall.Now().Add(moderation.MaxBan).Unix()) {
		t.Errorf("the longest ban ends at %d", got)
	}
}

func TestWhoCannotBeBanned(t *testing.T) {
	h := open(t)
	root, owner, alice := h.admin(t, "root"), h.owner(t), h.person(t, "alice")
	h.Accounts.Add("carol")
	other := h.admin(t, "dave") // an admin by an older configuration, still connected
	for name, test := range map[string]struct {
		by     person
		whom   string
		reason string
		code   qpcpb.Code
	}{
		"oneself":               {root, "root", "", qpcpb.CodeInvalidField},
		"oneself, not listed":   {other, "dave", "", qpcpb.CodeInvalidField},
		"another admin":         {root, "carol", "", qpcpb.CodeInvalidField},
		"an admin by the owner": {owner, "root", "", qpcpb.CodeInvalidField},
		"nobody":                {root, "nobody", "", qpcpb.CodeUserNotFound},
		"by anybody":            {alice, "dave", "", qpcpb.CodeAdminRequired},
		"a long reason":         {root, "alice", strings.Repeat("ä", 201), qpcpb.CodeInvalidField},
		"a control character":   {root, "alice", "a\x1b[2J", qpcpb.CodeInvalidField},
	} {
		t.Run(name, func(t *testing.T) {
			servicetest.WantCode(t, test.by.bans(test.whom, test.reason, 0), test.code)
		})
	}
	servicetest.WantCode(t, alice.unbans("dave"), qpcpb.CodeAdminRequired)
	if h.Count("moderation_ban") != 0 || len(h.accounts.ended) != 0 {
		t.Errorf("%d bans stored, %d sessions ended", h.Count("moderation_ban"), len(h.accounts.ended))
	}
}

func TestAtMostTwoThousandBans(t *testing.T) {
	h := open(t)
	root := h.admin(t, "root")
	h.Write(func(tx *store.Tx) error {
		for i := range moderation.MaxBans {
			if _, err := tx.Exec(`INSERT INTO moderation_ban VALUES (?, ?, 0, 0)`, servicetest.Bytes(fmt.Sprint(i)), strings.Repeat("𐐨", moderation.MaxReason)); err != nil {
				return err
			}
		}
		return nil
	})
	h.Accounts.Add("alice")
	h.Accounts.Add("7")
	servicetest.WantCode(t, root.bans("alice", "", 0), qpcpb.CodeQuotaExceeded)
	servicetest.WantCode(t, root.bans("7", "again", 0), qpcpb.CodeUnspecified)
	if got := root.listBanned(); len(got) != moderation.MaxBans {
		t.Errorf("%d bans in one answer", len(got))
	}
}

func TestErase(t *testing.T) {
	h := open(t)
	root, alice, bob := h.admin(t, "root"), h.person(t, "alice"), h.person(t, "bob")
	for _, p := range []person{alice, bob} {
		servicetest.WantCode(t, p.reports([]byte("x")), qpcpb.CodeUnspecified)
	}
	servicetest.WantCode(t, root.bans("alice", "", 0), qpcpb.CodeUnspecified)
	servicetest.WantCode(t, root.bans("bob", "", 0), qpcpb.CodeUnspecified)
	h.Write(func(tx *store.Tx) error { return h.moderation.EraseTx(tx, servicetest.Key("alice")) })
	reports, bans := root.listReports(0, 0), root.listBanned()
	if len(reports) != 1 || !bytes.Equal(reports[0].ReporterIdentity, servicetest.Bytes("bob")) || len(bans) != 1 || !bytes.Equal(bans[0].IdentityKey, servicetest.Bytes("bob")) {
		t.Errorf("left are %v and %v", reports, bans)
	}
	// A new report never takes the number of one that was there.
	last := reports[0].Id
	h.Write(func(tx *store.Tx) error { return h.moderation.EraseTx(tx, servicetest.Key("bob")) })
	servicetest.WantCode(t, root.reports([]byte("x")), qpcpb.CodeUnspecified)
	if got := root.listReports(0, 0); len(got) != 1 || got[0].Id <= last {
		t.Errorf("%v after %d", got, last)
	}
	if !slices.Contains(h.accounts.ended, servicetest.Key("alice")) {
		t.Error("no session ended")
	}
}
