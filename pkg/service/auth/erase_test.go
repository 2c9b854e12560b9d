package auth_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/server"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// A deleted account leaves nothing of its identity in any table. This runs the
// whole server, since every domain has its part in it: one that is added and
// forgets to erase fails here as soon as its line stands below.
func TestDeleteAccountLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	cfg, _, err := config.Load(config.Sources{
		Args:       []string{"--data-dir", dir, "--listen", "127.0.0.1:0", "--registration", "open"},
		DefaultUCI: filepath.Join(dir, "none"),
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := server.New(t.Context(), cfg, server.Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- s.Run(ctx) }()

	connect := func() client {
		conn, err := transport.Dial(servicetest.Within(t), transport.DialOptions{
			Address: s.Addrs()[0].String(), Trust: transport.TrustPin(s.Pin()), LocalAddr: netip.MustParseAddr("127.0.0.1"),
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(transport.CloseNormal, "") })
		c := rpc.NewClient(conn)
		return client{&servicetest.Client{Client: c}, qpcpb.NewAuthClient(c), t}
	}
	alice, bob := person("alice"), person("bob")
	aliceKey, bobKey := alice.identity(), bob.identity()
	ca, cb := connect(), connect()
	for _, p := range []struct {
		c client
		a account
	}{{ca, alice}, {cb, bob}} {
		if err := p.c.register(p.a, p.a.name); err != nil {
			t.Fatal(err)
		}
		p.c.mustLogin(p.a)
	}

	// Whatever an account can leave anywhere.
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	within := servicetest.Within(t)
	phone := servicetest.Device("phone")
	channel, err := qpcpb.NewChannelClient(ca.Client).CreateChannel(within, &qpcpb.CreateChannelRequest{PeerKey: bobKey[:]})
	must(channel, err)
	must(qpcpb.NewDeviceClient(ca.Client).RegisterDevice(within, &qpcpb.RegisterDeviceRequest{DeviceId: phone[:], DeviceName: "phone"}))
	must(qpcpb.NewKeyClient(ca.Client).UploadKeyPackage(within, &qpcpb.UploadKeyPackageRequest{IdentityKey: aliceKey[:], Package: []byte{0, 1, 0, 1, 7}}))
	must(qpcpb.NewKeyClient(ca.Client).UploadKeyPackage(within, &qpcpb.UploadKeyPackageRequest{IdentityKey: aliceKey[:], Package: []byte{0, 1, 0, 1, 8}, LastResort: true, DeviceId: phone[:]}))
	must(qpcpb.NewKeyClient(ca.Client).UploadHybridKey(within, &qpcpb.UploadHybridKeyRequest{IdentityKey: aliceKey[:], HybridPublicKey: make([]byte, 1216)}))
	for _, id := range [][]byte{nil, channel.ChannelId} {
		must(qpcpb.NewDeliveryClient(ca.Client).Enqueue(within, &qpcpb.EnqueueRequest{RecipientKey: bobKey[:], ChannelId: id, Payload: []byte("x"), MessageId: make([]byte, 16)}))
		must(qpcpb.NewDeliveryClient(cb.Client).Enqueue(within, &qpcpb.EnqueueRequest{RecipientKey: aliceKey[:], ChannelId: id, Payload: []byte("x"), MessageId: make([]byte, 16)}))
		must(qpcpb.NewDeliveryClient(ca.Client).Ack(within, &qpcpb.AckRequest{RecipientKey: aliceKey[:], ChannelId: id, SeqUpTo: 1, DeviceId: phone[:]}))
	}
	for i, owner := range []client{ca, cb} { // of one group, and a member of the other
		id := []byte{0: byte(i + 1), 15: 0}
		must(qpcpb.NewGroupClient(owner.Client).UpdateGroupMetadata(within, &qpcpb.UpdateGroupMetadataRequest{GroupId: id, AddMembers: [][]byte{aliceKey[:], bobKey[:]}}))
		must(qpcpb.NewGroupClient(ca.Client).RotateKeys(within, &qpcpb.RotateKeysRequest{GroupId: id, Commit: []byte("x")}))
	}
	must(qpcpb.NewDirectoryClient(ca.Client).BlockUser(within, &qpcpb.BlockUserRequest{IdentityKey: bobKey[:]}))
	must(qpcpb.NewDirectoryClient(cb.Client).BlockUser(within, &qpcpb.BlockUserRequest{IdentityKey: aliceKey[:]}))
	must(ca.DeleteAccount(within, &qpcpb.DeleteAccountRequest{}))

	stop()
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), store.Options{
		Path: filepath.Join(dir, "qpcd.db"), Migrations: store.ServerMigrations(), ApplicationID: 0x71706364,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	found := find(t, db, aliceKey[:], []byte(hex.EncodeToString(aliceKey[:])), phone[:])
	if len(found) != 0 {
		t.Errorf("the identity or its device is left in %v", found)
	}
	if found := find(t, db, []byte("alice")); len(found) != 1 || found[0] != "auth_retired_name.username" {
		t.Errorf("the name is left in %v, want the names that rest alone", found)
	}
	if found := find(t, db, bobKey[:]); len(found) < 2 {
		t.Errorf("bob is found in %v only: this test does not see what is there", found)
	}
}

// find returns the columns that hold one of the needles, as table.column.
func find(t *testing.T, db *store.DB, needles ...[]byte) (found []string) {
	t.Helper()
	err := db.Read(t.Context(), func(tx *store.Tx) error {
		rows, err := tx.Query(`SELECT m.name, c.name FROM sqlite_schema m JOIN pragma_table_info(m.name) c WHERE m.type = 'table'`)
		if err != nil {
			return err
		}
		var columns [][2]string
		for rows.Next() {
			var column [2]string
			if err := rows.Scan(&column[0], &column[1]); err != nil {
				return err
			}
			columns = append(columns, column)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for _, column := range columns {
			values, err := tx.Query("SELECT CAST(" + column[1] + " AS BLOB) FROM " + column[0])
			if err != nil {
				return err
			}
			holds := false
			for values.Next() {
				var value []byte
				if err := values.Scan(&value); err != nil {
					return err
				}
				for _, needle := range needles {
					holds = holds || bytes.Contains(value, needle)
				}
			}
			if err := values.Err(); err != nil {
				return err
			}
			if holds {
				found = append(found, strings.Join(column[:], "."))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
