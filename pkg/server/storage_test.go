package server

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/service/health"
	"github.com/quicprochat/qpcd/pkg/store"
)

// disk is a directory on a file system of its own.
func disk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (c *client) health() string {
	c.t.Helper()
	answer, err := qpcpb.NewHealthClient(c).Health(within(c.t), &qpcpb.HealthRequest{})
	if err != nil {
		c.t.Fatal(err)
	}
	return answer.Status
}

func (c *client) waitHealth(want string) {
	c.t.Helper()
	for end := time.Now().Add(patience); c.health() != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("the server is not %s", want)
		}
	}
}

func (c *client) send(to *user, payload []byte) (uint64, error) {
	answer, err := qpcpb.NewDeliveryClient(c).Enqueue(within(c.t), &qpcpb.EnqueueRequest{RecipientKey: to.key[:], Payload: payload})
	return answer.GetSeq(), err
}

func (c *client) peek(u *user, after uint64) []*qpcpb.Envelope {
	c.t.Helper()
	answer, err := qpcpb.NewDeliveryClient(c).Peek(within(c.t), &qpcpb.PeekRequest{RecipientKey: u.key[:], AfterSeq: after})
	if err != nil {
		c.t.Fatal(err)
	}
	return answer.Payloads
}

// The disk fills: the server reads on, says why it stores nothing, loses
// nothing that it has acknowledged, and heals when its readers make room.
func TestFullDiskIsReadOnly(t *testing.T) {
	h := open(t, disk(t, "6m"), nil)
	dora := person("dora") // has a password
	h.dial("").signUp(dora)
	alice, bob := h.settle(person("alice")), h.settle(person("bob"))
	from, to := h.dial("").resume(alice), h.dial("").resume(bob)

	var stored [][]byte
	var refusal error
	for i := 0; refusal == nil && i < 1000; i++ {
		message := bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 10_000)
		if _, refusal = from.send(bob, message); refusal == nil {
			stored = append(stored, message)
		}
	}
	wantCode(t, refusal, qpcpb.CodeDiskFull)
	if len(stored) < 50 {
		t.Errorf("the disk was full after %d messages", len(stored))
	}
	if got := from.health(); got != health.StatusReadOnly {
		t.Errorf("health is %q", got)
	}
	late := h.dial("")
	_, err := qpcpb.NewAuthClient(late).OpaqueLoginFinish(within(t), late.login(dora))
	wantCode(t, err, qpcpb.CodeDiskFull)
	h.dial("").resume(alice) // sessions go on

	// Nobody else gets a byte in: what makes room cannot be written either.
	ballast, err := os.Create(filepath.Join(h.dir, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = ballast.Write(make([]byte, 4096))
	}
	ballast.Close()
	var read [][]byte
	var last uint64
	for {
		page := to.peek(bob, last)
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			read, last = append(read, e.Data), e.Seq
		}
	}
	if !slices.EqualFunc(stored, read, bytes.Equal) {
		t.Errorf("%d messages were acknowledged, %d are there", len(stored), len(read))
	}
	fetch := func() []*qpcpb.Envelope {
		answer, err := qpcpb.NewDeliveryClient(to).Fetch(within(t), &qpcpb.FetchRequest{RecipientKey: bob.key[:], Limit: 3})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Payloads
	}
	// Fetch returns them, and removes them as soon as it can.
	for _, e := range fetch() {
		if !bytes.Equal(e.Data, stored[e.Seq-1]) {
			t.Errorf("message %d is another one", e.Seq)
		}
	}
	if err := os.Remove(ballast.Name()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		_, err := qpcpb.NewDeliveryClient(to).Ack(within(t), &qpcpb.AckRequest{RecipientKey: bob.key[:], SeqUpTo: last})
		if err == nil {
			break
		}
		wantCode(t, err, qpcpb.CodeDiskFull)
		if time.Now().After(end) {
			t.Fatal("messages cannot be acknowledged, so nothing can heal")
		}
	}
	for more := true; more; {
		if more, err = h.s.delivery.Sweep(store.Freeing(within(t))); err != nil {
			t.Fatal(err)
		}
	}
	from.waitHealth(health.StatusOK)
	if _, err := from.send(bob, []byte("there is room again")); err != nil {
		t.Error(err)
	}
	if n := strings.Count(h.log.String(), "level=ERROR"); n != 1 {
		t.Errorf("%d errors were logged:\n%s", n, h.log.String())
	}
}

func (h *house) prepare() *qpcpb.PrepareBackupResponse {
	h.t.Helper()
	p, err := h.s.PrepareBackup(within(h.t), &qpcpb.PrepareBackupRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

func (h *house) copies() (names []string) {
	h.t.Helper()
	names, err := filepath.Glob(filepath.Join(h.dir, snapshotDir, "*"))
	if err != nil {
		h.t.Fatal(err)
	}
	return names
}

// Copies for backups do not pile up.
func TestCopiesForBackups(t *testing.T) {
	h := open(t, t.TempDir(), nil)
	first := h.prepare()
	if info, err := os.Stat(first.Database); err != nil || info.Mode() != 0o600 || int64(first.Bytes) < info.Size() {
		t.Errorf("the copy: %v, %v", info, err)
	}
	if first.ServerName != "router" || first.Version != "test" || !filepath.IsAbs(first.Key) {
		t.Errorf("the answer: %v", first)
	}
	if newest, err := NewestSchema(); err != nil || int(first.Schema) != newest {
		t.Errorf("schema %d, want %d, %v", first.Schema, newest, err)
	}
	second := h.prepare()
	if got := h.copies(); !slices.Equal(got, []string{second.Database}) {
		t.Errorf("after the next one there are %v", got)
	}
	finish := func(path string) bool {
		answer, err := h.s.FinishBackup(within(t), &qpcpb.FinishBackupRequest{Database: path})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Success
	}
	for _, path := range []string{first.Database, "", "/etc/passwd", filepath.Join(h.dir, databaseFile)} {
		if finish(path) {
			t.Errorf("%q was removed", path)
		}
	}
	if !finish(second.Database) || finish(second.Database) || len(h.copies()) != 0 {
		t.Errorf("after the end there are %v", h.copies())
	}
	h.prepare()
	if _, err := h.s.snapshots.sweep(t.Context()); err != nil || len(h.copies()) != 1 {
		t.Errorf("soon after there are %v, %v", h.copies(), err)
	}
	h.sleep(snapshotFor)
	if _, err := h.s.snapshots.sweep(t.Context()); err != nil || len(h.copies()) != 0 {
		t.Errorf("an hour later there are %v, %v", h.copies(), err)
	}
	h.s.snapshots.running.Lock()
	_, err := h.s.PrepareBackup(within(t), &qpcpb.PrepareBackupRequest{})
	h.s.snapshots.running.Unlock()
	wantCode(t, err, qpcpb.CodeAlreadyRunning)
	h.prepare()
	h.stop()
	if again := open(t, h.dir, nil); len(again.copies()) != 0 {
		t.Errorf("after a restart there are %v", again.copies())
	}
}

// A copy is not begun that would fill the disk.
func TestNoRoomForACopy(t *testing.T) {
	h := open(t, disk(t, "6m"), nil)
	if err := os.WriteFile(filepath.Join(h.dir, "ballast"), make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	alice, bob := h.settle(person("alice")), h.settle(person("bob"))
	from := h.dial("").resume(alice)
	for range 12 {
		if _, err := from.send(bob, make([]byte, 40_000)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := h.s.PrepareBackup(within(t), &qpcpb.PrepareBackupRequest{})
	wantCode(t, err, qpcpb.CodeDiskFull)
	if len(h.copies()) != 0 {
		t.Errorf("left: %v", h.copies())
	}
}

// A backup comes back: what was in it is there, no sequence number is given
// twice, and no session, invite or one-time key package comes back with it.
func TestRestoredServer(t *testing.T) {
	h := open(t, t.TempDir(), nil)
	alice, bob, carol := h.settle(person("alice")), h.settle(person("bob")), h.settle(person("carol"))
	from, to := h.dial("").resume(alice), h.dial("").resume(bob)
	for i := range 3 {
		if _, err := from.send(bob, fmt.Appendf(nil, "before %d", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.s.db.Write(t.Context(), func(tx *store.Tx) error {
		for i, lastResort := range []int{0, 1} {
			_, err := tx.Exec(`INSERT INTO keys_package (identity_key, device_id, package, last_resort, valid_until) VALUES (?, x'', ?, ?, 1000000)`, bob.key, []byte{byte(i)}, lastResort)
			if err != nil {
				return err
			}
		}
		_, err := tx.Exec(`INSERT INTO auth_invite (code_hash, created_at, valid_until) VALUES (?, 0, 1000000)`, sha256.New().Sum(nil))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	p := h.prepare()
	dir := t.TempDir()
	for from, name := range map[string]string{p.Database: databaseFile, p.Key: filepath.Base(p.Key), p.Certificate: filepath.Base(p.Certificate)} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	// What the backup does not know: bob reads on, carol gets her first message.
	var highest uint64
	for i := range 5 {
		seq, err := from.send(bob, fmt.Appendf(nil, "after %d", i))
		if err != nil {
			t.Fatal(err)
		}
		highest = seq
	}
	carols, err := from.send(carol, []byte("after"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := qpcpb.NewDeliveryClient(to).Ack(within(t), &qpcpb.AckRequest{RecipientKey: bob.key[:], SeqUpTo: highest}); err != nil {
		t.Fatal(err)
	}
	h.stop()

	if err := AdoptRestored(t.Context(), dir, slog.New(slog.NewTextHandler(io.Discard, nil))); err != nil {
		t.Fatal(err)
	}
	restored := open(t, dir, nil)
	if restored.s.Pin() != h.s.Pin() {
		t.Error("the certificate is another one")
	}
	if err := restored.dial("").Resume(within(t), alice.token); !errors.Is(err, rpc.ErrSessionRefused) {
		t.Errorf("a session of the past: %v", err)
	}
	for table, want := range map[string]int{"auth_invite": 0, "auth_session": 0, "keys_package": 1, "auth_account": 3} {
		got := 0
		if rows := restored.dump()[table]; rows != "" {
			got = strings.Count(rows, "\n") + 1
		}
		if got != want {
			t.Errorf("%d rows in %s, want %d", got, table, want)
		}
	}
	alice, bob, carol = restored.settle(alice), restored.settle(bob), restored.settle(carol)
	from, to = restored.dial("").resume(alice), restored.dial("").resume(bob)
	page := to.peek(bob, 0)
	if len(page) != 3 || string(page[2].Data) != "before 2" {
		t.Errorf("of the backup there are %d messages", len(page))
	}
	for _, c := range []struct {
		to   *user
		seen uint64
	}{{bob, highest}, {carol, carols}} {
		for range 2 {
			seq, err := from.send(c.to, []byte("restored"))
			if err != nil || seq <= c.seen {
				t.Errorf("to %s under %d, though %d was seen: %v", c.to.name, seq, c.seen, err)
			}
			c.seen = seq
		}
	}
	// A client goes on from where it was.
	if page := to.peek(bob, highest); len(page) != 2 {
		t.Errorf("above its cursor bob's client finds %d messages", len(page))
	}
	if _, err := qpcpb.NewDeliveryClient(to).Ack(within(t), &qpcpb.AckRequest{RecipientKey: bob.key[:], SeqUpTo: highest}); err != nil {
		t.Error(err)
	}
	if page := to.peek(bob, 0); len(page) != 2 {
		t.Errorf("after acknowledging what it had, %d messages wait", len(page))
	}
}

func TestDiagnose(t *testing.T) {
	h := open(t, t.TempDir(), func(c *config.Config) { c.MaxConnections = 10 })
	answer, err := h.s.Diagnose(within(t), &qpcpb.DiagnoseRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range answer.Findings {
		if f.Level != levelOK || f.Detail == "" || f.Advice != "" {
			t.Errorf("a healthy server: %v", f)
		}
	}
	for range 9 {
		h.dial("")
	}
	answer, err = h.s.Diagnose(within(t), &qpcpb.DiagnoseRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(answer.Findings, func(f *qpcpb.Finding) bool { return f.Check == "connections" })
	if f := answer.Findings[i]; f.Level != levelWarning || f.Advice == "" {
		t.Errorf("nearly no connection is left: %v", f)
	}
}

// A disk fails that is not full: nothing is written, and Fetch answers what it
// cannot remove. The limit on files is the process's, so that no other test may
// run beside this one.
func TestFetchOnAFailingDisk(t *testing.T) {
	h := open(t, t.TempDir(), nil)
	alice, bob := h.settle(person("alice")), h.settle(person("bob"))
	from, to := h.dial("").resume(alice), h.dial("").resume(bob)
	if _, err := from.send(bob, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	set := func(limit unix.Rlimit) {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
			t.Fatal(err)
		}
	}
	defer set(old)
	set(unix.Rlimit{Cur: 0, Max: old.Max})
	fetch := func() int {
		answer, err := qpcpb.NewDeliveryClient(to).Fetch(within(t), &qpcpb.FetchRequest{RecipientKey: bob.key[:]})
		if err != nil {
			t.Fatal(err)
		}
		return len(answer.Payloads)
	}
	for range 2 {
		if n := fetch(); n != 1 {
			t.Errorf("%d messages, want the one that stays", n)
		}
	}
	_, err := from.send(bob, []byte("lost"))
	wantCode(t, err, qpcpb.CodeStorageFailed)
	if got := from.health(); got != health.StatusReadOnly {
		t.Errorf("health is %q", got)
	}
	set(old)
	from.waitHealth(health.StatusOK)
	if n := fetch(); n != 1 {
		t.Errorf("%d messages, want the one that stayed", n)
	}
	if n := fetch(); n != 0 {
		t.Errorf("%d messages, want none", n)
	}
}
