package server

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc/rpctest"
)

// local is the owner, at a control socket in memory.
func local(s *stage) *client {
	conn, server := rpctest.Pipe(rpctest.Options{})
	c := s.house.client(conn)
	c.gone.Go(func() { s.house.s.calls.ServeLocal(server) })
	return c
}

// passerby is the owner, once there is another account to try things on.
func passerby(s *stage) *client {
	passer(s)
	return local(s)
}

func (s *stage) nameOfPasser() string { return fmt.Sprintf("passer%d", s.made) }

// adds makes a peer that nobody can reach.
func (s *stage) adds(c *client) *qpcpb.AddPeerRequest {
	request := &qpcpb.AddPeerRequest{Domain: "friends.example", Address: "127.0.0.1:1", Pin: strings.Repeat("5a", 32)}
	if _, err := qpcpb.NewControlClient(c).AddPeer(within(s.t), request); err != nil {
		s.t.Fatal(err)
	}
	return request
}

// peerRows steer the federation.
func peerRows() map[qpcpb.MethodID]row {
	domain := rule{put("empty", "", qpcpb.CodePeerNotFound), put("another", "other.example", qpcpb.CodePeerNotFound), put("NUL", "friends.example\x00", qpcpb.CodePeerNotFound)}
	return map[qpcpb.MethodID]row{
		qpcpb.MethodAddPeer: {
			valid: func(s *stage, c *client) proto.Message { return s.adds(c) },
			fields: map[protoreflect.Name]rule{
				"domain":  {put("empty", "", invalid), put("a name in it", "bob@friends.example", invalid), put("space", "friends example", invalid), put("NUL", "friends\x00.example", invalid)},
				"address": {put("empty", "", invalid), put("no host", ":5001", invalid), put("port 0", "192.0.2.1:0", invalid), put("two ports", "192.0.2.1:1:1", invalid)},
				"pin":     {put("empty", "", invalid), put("63 digits", strings.Repeat("a", 63), invalid), put("no digits", strings.Repeat("g", 64), invalid)},
			},
		},
		qpcpb.MethodListPeers: {valid: func(*stage, *client) proto.Message { return &qpcpb.ListPeersRequest{} }},
		qpcpb.MethodRemovePeer: {
			valid: func(s *stage, c *client) proto.Message {
				return &qpcpb.RemovePeerRequest{Domain: s.adds(c).Domain}
			},
			fields: map[protoreflect.Name]rule{"domain": domain},
		},
		qpcpb.MethodTestPeer: {
			valid: func(s *stage, c *client) proto.Message {
				return &qpcpb.TestPeerRequest{Domain: s.adds(c).Domain}
			},
			fields: map[protoreflect.Name]rule{"domain": domain},
		},
	}
}

// controlRows are the methods of the control socket.
func controlRows() map[qpcpb.MethodID]row {
	all := map[qpcpb.MethodID]row{}
	add := func(id qpcpb.MethodID, r row) {
		if r.who == nil {
			r.who = local
		}
		all[id] = r
	}
	for id, r := range peerRows() {
		add(id, r)
	}
	notFound := func(values ...string) (r rule) {
		for _, v := range values {
			r = append(r, put(fmt.Sprintf("%.20q", v), v, qpcpb.CodeInviteNotFound))
		}
		return r
	}
	add(qpcpb.MethodGetStatus, row{valid: func(*stage, *client) proto.Message { return &qpcpb.GetStatusRequest{} }})
	add(qpcpb.MethodListAccounts, row{
		valid:  func(*stage, *client) proto.Message { return &qpcpb.ListAccountsRequest{Prefix: "a", Limit: 2} },
		fields: map[protoreflect.Name]rule{"prefix": text("al"), "after": text("zz"), "limit": number()},
	})
	add(qpcpb.MethodGetAccount, row{
		valid:  func(*stage, *client) proto.Message { return &qpcpb.GetAccountRequest{Username: "Alice"} },
		fields: map[protoreflect.Name]rule{"username": append(username(), put("nobody", "nobody", qpcpb.CodeUserNotFound))},
	})
	add(qpcpb.MethodRemoveAccount, row{
		who: passerby,
		valid: func(s *stage, _ *client) proto.Message {
			return &qpcpb.RemoveAccountRequest{Username: s.nameOfPasser()}
		},
		fields: map[protoreflect.Name]rule{
			"username": append(username(), put("nobody", "nobody", qpcpb.CodeUserNotFound)), "free_name": number(),
		},
	})
	add(qpcpb.MethodResetPassword, row{
		valid: func(*stage, *client) proto.Message {
			return &qpcpb.ResetPasswordRequest{Username: "alice", ValidSecs: 60}
		},
		fields: map[protoreflect.Name]rule{
			"username":   append(username(), put("nobody", "nobody", qpcpb.CodeUserNotFound)),
			"valid_secs": number().but(invalid, "maximum"),
		},
	})
	add(qpcpb.MethodRemoveAccountDevice, row{
		who: passerby,
		valid: func(s *stage, _ *client) proto.Message {
			id := random(16)
			c := s.house.pipe().resume(s.settle(person(s.nameOfPasser())))
			if _, err := qpcpb.NewDeviceClient(c).RegisterDevice(within(s.t), &qpcpb.RegisterDeviceRequest{DeviceId: id, DeviceName: "x"}); err != nil {
				s.t.Fatal(err)
			}
			return &qpcpb.RemoveAccountDeviceRequest{Username: s.nameOfPasser(), DeviceId: id}
		},
		fields: map[protoreflect.Name]rule{
			"username":  append(username(), put("nobody", "nobody", qpcpb.CodeUserNotFound), put("another", "alice", qpcpb.CodeDeviceNotFound)),
			"device_id": append(fixed(16), put("none", make([]byte, 16), qpcpb.CodeDeviceNotFound)),
		},
	})
	add(qpcpb.MethodCreateInvite, row{
		valid: func(*stage, *client) proto.Message { return &qpcpb.CreateInviteRequest{ValidSecs: 60, Note: "x"} },
		fields: map[protoreflect.Name]rule{
			"valid_secs": number().but(invalid, "maximum"),
			"note": append(text("for grandmother", strings.Repeat("\U0001f475", 100)).but(invalid, `"\x00"`),
				put("101 characters", strings.Repeat("x", 101), invalid), put("two lines", "a\nb", invalid)),
		},
	})
	add(qpcpb.MethodListInvites, row{valid: func(*stage, *client) proto.Message { return &qpcpb.ListInvitesRequest{} }})
	add(qpcpb.MethodRevokeInvite, row{
		valid: func(s *stage, c *client) proto.Message {
			made, err := qpcpb.NewControlClient(c).CreateInvite(within(s.t), &qpcpb.CreateInviteRequest{})
			if err != nil {
				s.t.Fatal(err)
			}
			return &qpcpb.RevokeInviteRequest{Id: made.Invite.Id}
		},
		fields: map[protoreflect.Name]rule{"id": notFound("", "\x00", "0", "%", "' OR 1=1 --", "zzzzzzzz", strings.Repeat("0", 64))},
	})
	add(qpcpb.MethodDiagnose, row{valid: func(*stage, *client) proto.Message { return &qpcpb.DiagnoseRequest{} }})
	add(qpcpb.MethodPrepareBackup, row{valid: func(*stage, *client) proto.Message { return &qpcpb.PrepareBackupRequest{} }})
	add(qpcpb.MethodFinishBackup, row{
		valid:  func(*stage, *client) proto.Message { return &qpcpb.FinishBackupRequest{Database: "none"} },
		fields: map[protoreflect.Name]rule{"database": text("../qpcd.db", "/etc/passwd")},
	})
	add(qpcpb.MethodVerifyLog, row{valid: func(*stage, *client) proto.Message { return &qpcpb.VerifyLogRequest{} }})
	add(qpcpb.MethodRotateCertificate, row{valid: func(*stage, *client) proto.Message { return &qpcpb.RotateCertificateRequest{} }})
	return all
}

// Each side calls each method, and those of other sides are not there for it.
func TestSidesSeeTheirOwnMethods(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	conn, server := rpctest.Pipe(rpctest.Options{})
	peer := s.house.client(conn)
	peer.gone.Go(func() { s.house.s.calls.ServePeer(server, "peer.example") })
	owner := local(s)
	for _, info := range qpcpb.Methods() {
		empty := bad{info.Name, framed(info.ID, nil), qpcpb.CodeUnimplemented, requestID}
		if info.Access != qpcpb.Access_ACCESS_PEER {
			empty.name = info.Name + " called by a peer"
			s.refuse(t, peer, empty)
		}
		switch info.Access {
		case qpcpb.Access_ACCESS_PEER, qpcpb.Access_ACCESS_SESSION:
			empty.name = info.Name + " called by the owner"
			s.refuse(t, owner, empty)
		case qpcpb.Access_ACCESS_LOCAL:
			for name, c := range map[string]*client{"a stranger": s.stranger, "a user": s.user, "an admin": s.admin} {
				empty.name = info.Name + " called by " + name
				s.refuse(t, c, empty)
			}
		}
	}
}
