package server

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/frame"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/delivery"
	"github.com/quicprochat/qpcd/pkg/service/keys"
)

// stage is a house with people in it, in the state that the valid requests
// speak of.
type stage struct {
	*house
	alice, bob, root *user
	stranger         *client // never logged in
	user, admin      *client // alice and root
	peer             *client // another server; see asPeer
	device           []byte  // of alice
	channel          []byte  // of alice and bob
	upload           []byte  // of a registration
	made             int     // names made so far
	pace             time.Duration
}

// parse reads exactly one well-formed response.
func parse(b []byte) (a answer, err error) {
	r := bytes.NewReader(b)
	header, err := frame.ReadResponseHeader(r)
	if err != nil {
		return a, err
	}
	a = answer{status: qpcpb.Status(header.Status), id: header.RequestID}
	if a.body, err = frame.ReadPayload(r, header.Length, frame.MaxPayload, nil); err != nil {
		return a, err
	}
	if a.status != qpcpb.StatusOK {
		var e qpcpb.Error
		if err := proto.Unmarshal(a.body, &e); err != nil {
			return a, err
		}
		code := qpcpb.CodeOf(e.Code)
		if a.code = e.Code; code == qpcpb.CodeUnspecified || code.Status() != a.status || e.Message == "" {
			return a, fmt.Errorf("the error payload is not one of ours: %v with status %v", &e, a.status)
		}
	}
	return a, nil
}

// A rule says what a field may hold, as the wrong and the extreme values for
// it with the code that each is answered with.
type rule []value

type value struct {
	name string
	set  func(m protoreflect.Message, fd protoreflect.FieldDescriptor)
	want qpcpb.Code // CodeUnspecified: OK
}

func put(name string, v any, want qpcpb.Code) value {
	return value{name, func(m protoreflect.Message, fd protoreflect.FieldDescriptor) { m.Set(fd, protoreflect.ValueOf(v)) }, want}
}

func lengths(want qpcpb.Code, sizes ...int) (r rule) {
	for _, n := range sizes {
		r = append(r, put(fmt.Sprintf("%d bytes", n), make([]byte, n), want))
	}
	return r
}

const (
	ok       = qpcpb.CodeUnspecified
	invalid  = qpcpb.CodeInvalidField
	badName  = qpcpb.CodeInvalidUsername
	tooLarge = qpcpb.CodePayloadTooLarge
)

// fixed is a field of exactly n bytes.
func fixed(n int) rule { return lengths(invalid, 0, 1, n-1, n+1, 33+n%2, 2*n, 1000) }

// optional is a field of n bytes or none.
func optional(n int) rule { return append(lengths(invalid, 1, n-1, n+1, 33, 1000), lengths(ok, 0)...) }

// upTo is a field of up to n bytes.
func upTo(n int) rule { return append(lengths(ok, 0, 1, n), lengths(tooLarge, n+1)...) }

// username is a field that holds a name that becomes another's or nobody's
// when it is changed.
func username() rule {
	return rule{
		put("empty", "", badName), put("NUL", "al\x00ice", badName), put("NUL at the end", "alice\x00", badName),
		put("33 letters", strings.Repeat("a", 33), badName), put("4,000 letters", strings.Repeat("a", 3000), badName),
		put("domain", "alice@home", badName), put("space", "al ice", badName), put("dot first", ".alice", badName),
		put("path", "../alice", badName), put("line break", "alice\n", badName), put("control", "alice\x7f", badName),
		put("bidirectional override", "alice\u202e", badName), put("emoji", "alice\U0001f600", badName),
	}
}

// text is a string of which the named values are fine.
func text(values ...string) (r rule) {
	for _, v := range append(values, "", "\x00", "' OR 1=1 --", "%_\\") {
		r = append(r, put(fmt.Sprintf("%.20q", v), v, ok))
	}
	return r
}

// number is an integer that may have any value.
func number() rule {
	extreme := func(name string, pick func(low, high protoreflect.Value) protoreflect.Value) value {
		return value{name, func(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
			switch fd.Kind() {
			case protoreflect.Uint32Kind:
				m.Set(fd, pick(protoreflect.ValueOfUint32(0), protoreflect.ValueOfUint32(1<<32-1)))
			case protoreflect.Uint64Kind:
				m.Set(fd, pick(protoreflect.ValueOfUint64(0), protoreflect.ValueOfUint64(1<<64-1)))
			case protoreflect.BoolKind:
				m.Set(fd, pick(protoreflect.ValueOfBool(false), protoreflect.ValueOfBool(true)))
			}
		}, ok}
	}
	return rule{
		extreme("zero", func(low, _ protoreflect.Value) protoreflect.Value { return low }),
		extreme("maximum", func(_, high protoreflect.Value) protoreflect.Value { return high }),
	}
}

// but changes the answer to some of the values.
func (r rule) but(want qpcpb.Code, names ...string) rule {
	changed := append(rule{}, r...)
	for _, name := range names {
		found := false
		for i := range changed {
			if changed[i].name == name {
				changed[i].want, found = want, true
			}
		}
		if !found {
			panic("no value " + name)
		}
	}
	return changed
}

// without leaves some of the values out.
func (r rule) without(name string) (kept rule) {
	for _, v := range r {
		if v.name != name {
			kept = append(kept, v)
		}
	}
	return kept
}

// list sets a repeated field to n values.
func list(name string, n int, element func(i int) []byte, want qpcpb.Code) value {
	return value{name, func(m protoreflect.Message, fd protoreflect.FieldDescriptor) {
		l := m.NewField(fd).List()
		for i := range n {
			l.Append(protoreflect.ValueOfBytes(element(i)))
		}
		m.Set(fd, protoreflect.ValueOfList(l))
	}, want}
}

// keyOf returns an identity key of nobody, another for each i.
func keyOf(i int) []byte {
	return binary.BigEndian.AppendUint32(make([]byte, 28), uint32(i))
}

func keysOf(n int) func(int) []byte { return func(int) []byte { return make([]byte, n) } }

// A row is a served method: a valid request, made anew for each use since a
// use may spend it, and the rule of every field.
type row struct {
	// who makes the call; nil: alice.
	who   func(s *stage) *client
	valid func(s *stage, c *client) proto.Message
	// answered is what the valid request gets; ok but where that takes an
	// Argon2id to find out.
	answered qpcpb.Code
	// pace is the time between two calls, when 2 minutes are too little for a
	// limit of rate.
	pace   time.Duration
	fields map[protoreflect.Name]rule
}

// fresh is a new stranger, for methods that change who the connection is or
// count its refusals.
func fresh(s *stage) *client { return s.house.pipe() }

// passer is a new user of the house.
func passer(s *stage) *client {
	s.made++
	return s.house.pipe().resume(s.settle(person(fmt.Sprintf("passer%d", s.made))))
}

func random(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(rand.Reader, b); err != nil {
		panic(err)
	}
	return b
}

func keyPackage(size int) []byte {
	return append([]byte{0, 1, 0, 1}, random(size-4)...)
}

// rows are all methods that are served. A method that is served and not here
// fails the test.
func rows() map[qpcpb.MethodID]row {
	all := coreRows()
	for _, more := range []func() map[qpcpb.MethodID]row{
		// One line a domain, by name; its function stands in
		// valid_<domain>_test.go.
		moderationRows,
		reachRows,
		recoveryRows,
		blobRows,
		controlRows,
		federationRows,
		groupRows,
		transparencyRows,
	} {
		maps.Copy(all, more())
	}
	return all
}

// coreRows are the methods of the domains that a message passes.
func coreRows() map[qpcpb.MethodID]row {
	own := fixed(32) // a wrong length is found before a wrong owner
	queue := func(more map[protoreflect.Name]rule) map[protoreflect.Name]rule {
		fields := map[protoreflect.Name]rule{
			"recipient_key": own, "channel_id": optional(16), "device_id": optional(16),
			"limit": number(), "all_channels": number().without("maximum"),
		}
		for name, r := range more {
			if fields[name] = r; r == nil {
				delete(fields, name)
			}
		}
		return fields
	}
	identity := map[protoreflect.Name]rule{"identity_key": own}
	return map[qpcpb.MethodID]row{
		qpcpb.MethodOpaqueRegisterStart: {
			who: func(s *stage) *client { return s.stranger },
			valid: func(s *stage, _ *client) proto.Message {
				_, request, err := opaque.NewRegistration(rand.Reader, []byte("x"))
				if err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.OpaqueRegisterStartRequest{Username: "newcomer", Request: request}
			},
			fields: map[protoreflect.Name]rule{"username": username(), "request": fixed(opaque.RegistrationRequestLength)},
		},
		qpcpb.MethodOpaqueRegisterFinish: {
			who: func(s *stage) *client { return s.stranger },
			valid: func(s *stage, c *client) proto.Message {
				s.made++
				u := person(fmt.Sprintf("newcomer%d", s.made))
				// An upload is made once: what it says of the password is
				// nothing that this message is checked for.
				return s.registerFinish(u)
			},
			fields: map[protoreflect.Name]rule{
				"username": username(), "upload": fixed(opaque.RegistrationUploadLength), "identity_key": own,
				"invite":         text("code"),
				"identity_proof": append(lengths(qpcpb.CodeIdentityProofInvalid, 1, 63, 64, 65, 1000), lengths(ok, 0)...),
			},
		},
		qpcpb.MethodOpaqueLoginStart: {
			who: fresh, pace: 20 * time.Minute,
			valid: func(s *stage, _ *client) proto.Message {
				s.made++
				_, ke1, err := opaque.NewLogin(rand.Reader, []byte("x"))
				if err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.OpaqueLoginStartRequest{Username: fmt.Sprintf("unknown%d", s.made), Request: ke1}
			},
			fields: map[protoreflect.Name]rule{"username": username(), "request": fixed(opaque.KE1Length)},
		},
		qpcpb.MethodOpaqueLoginFinish: {
			who: fresh, pace: time.Second,
			valid: func(s *stage, c *client) proto.Message {
				s.sleep(20 * time.Minute) // here and not in the middle of the login
				s.made++
				name := fmt.Sprintf("unknown%d", s.made)
				_, ke1, err := opaque.NewLogin(rand.Reader, []byte("x"))
				if err != nil {
					s.t.Fatal(err)
				}
				start := &qpcpb.OpaqueLoginStartRequest{Username: name, Request: ke1}
				if _, err := qpcpb.NewAuthClient(c).OpaqueLoginStart(within(s.t), start); err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.OpaqueLoginFinishRequest{Username: name, Finalization: random(opaque.KE3Length), IdentityKey: random(32)}
			},
			answered: qpcpb.CodeBadCredentials, // TestStoryWithARestart has one that succeeds
			fields: map[protoreflect.Name]rule{
				"username": username(), "finalization": fixed(opaque.KE3Length), "identity_key": own,
				"device_id": optional(16).but(qpcpb.CodeBadCredentials, "0 bytes"),
			},
		},
		qpcpb.MethodEnqueue: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.EnqueueRequest{RecipientKey: s.bob.key[:], ChannelId: s.channel, Payload: []byte("hello"), MessageId: random(16)}
			},
			fields: map[protoreflect.Name]rule{
				"recipient_key": own, "channel_id": optional(16), "message_id": optional(16),
				"payload": upTo(delivery.MaxPayload), "ttl_secs": number(), "ephemeral": number(),
			},
		},
		qpcpb.MethodFetch: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.FetchRequest{RecipientKey: s.alice.key[:], ChannelId: s.channel, DeviceId: s.device}
			},
			fields: queue(map[protoreflect.Name]rule{"all_channels": number().but(invalid, "maximum")}),
		},
		qpcpb.MethodFetchWait: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.FetchWaitRequest{RecipientKey: s.alice.key[:], ChannelId: s.channel, DeviceId: s.device, TimeoutMs: 1}
			},
			// The longest wait is 60 s: TestStoryWithARestart has it.
			fields: queue(map[protoreflect.Name]rule{"timeout_ms": number().without("maximum"), "all_channels": number().but(invalid, "maximum")}),
		},
		qpcpb.MethodPeek: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.PeekRequest{RecipientKey: s.alice.key[:], ChannelId: s.channel, DeviceId: s.device, AfterSeq: 1}
			},
			fields: queue(map[protoreflect.Name]rule{"after_seq": number(), "all_channels": number().but(invalid, "maximum")}),
		},
		qpcpb.MethodAck: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.AckRequest{RecipientKey: s.alice.key[:], ChannelId: s.channel, DeviceId: s.device, SeqUpTo: 1}
			},
			fields: queue(map[protoreflect.Name]rule{"seq_up_to": number(), "limit": nil, "all_channels": nil}),
		},
		qpcpb.MethodBatchEnqueue: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.BatchEnqueueRequest{RecipientKeys: [][]byte{s.bob.key[:], s.root.key[:]}, Payload: []byte("x"), MessageId: random(16)}
			},
			fields: map[protoreflect.Name]rule{
				"recipient_keys": {
					list("none", 0, keyOf, invalid), list("256", 256, keyOf, ok), list("257", 257, keyOf, invalid),
					list("31 bytes", 2, keysOf(31), invalid), list("33 bytes", 2, keysOf(33), invalid), list("empty", 2, keysOf(0), invalid),
					list("one twice", 2, keysOf(32), invalid), list("5,000", 5000, keyOf, qpcpb.CodeMalformed),
				},
				"payloads": {
					list("as well as payload", 2, keysOf(1), invalid), list("too few", 1, keysOf(1), invalid), list("too many", 3, keysOf(1), invalid),
				},
				"payload": upTo(delivery.MaxPayload), "channel_id": optional(16), "message_id": optional(16),
				"ttl_secs": number(), "ephemeral": number(),
			},
		},
		qpcpb.MethodUploadKeyPackage: {
			who: passer,
			valid: func(s *stage, c *client) proto.Message {
				return &qpcpb.UploadKeyPackageRequest{IdentityKey: s.keyOfPasser(), Package: keyPackage(300), DeviceId: random(16)}
			},
			fields: map[protoreflect.Name]rule{
				"identity_key": own,
				"package": {
					put("0 bytes", []byte{}, invalid), put("3 bytes", make([]byte, 3), invalid), put("zeros", make([]byte, 300), invalid),
					put("another suite", []byte{0, 1, 0, 2, 5, 5}, invalid), put("as an MLSMessage", append([]byte{0, 1, 0, 5}, keyPackage(99)...), invalid),
					put("the largest", keyPackage(keys.MaxPackage), ok), put("one too large", keyPackage(keys.MaxPackage+1), tooLarge),
				},
				"last_resort": number(), "device_id": optional(16),
			},
		},
		qpcpb.MethodFetchKeyPackage: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.FetchKeyPackageRequest{IdentityKey: s.bob.key[:]}
			},
			fields: identity,
		},
		qpcpb.MethodUploadHybridKey: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.UploadHybridKeyRequest{IdentityKey: s.alice.key[:], HybridPublicKey: make([]byte, keys.HybridKeySize)}
			},
			fields: map[protoreflect.Name]rule{"identity_key": own, "hybrid_public_key": fixed(keys.HybridKeySize)},
		},
		qpcpb.MethodFetchHybridKey: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.FetchHybridKeyRequest{IdentityKey: s.bob.key[:]}
			},
			fields: identity,
		},
		qpcpb.MethodFetchHybridKeys: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.FetchHybridKeysRequest{IdentityKeys: [][]byte{s.bob.key[:], s.root.key[:]}}
			},
			fields: map[protoreflect.Name]rule{"identity_keys": {
				list("none", 0, keyOf, ok), list("256", 256, keyOf, ok), list("257", 257, keyOf, invalid),
				list("31 bytes", 2, keysOf(31), invalid), list("33 bytes", 2, keysOf(33), invalid), list("empty", 2, keysOf(0), invalid),
				list("5,000", 5000, keyOf, qpcpb.CodeMalformed),
			}},
		},
		qpcpb.MethodCreateChannel: {
			valid:  func(s *stage, _ *client) proto.Message { return &qpcpb.CreateChannelRequest{PeerKey: s.bob.key[:]} },
			fields: map[protoreflect.Name]rule{"peer_key": own},
		},
		qpcpb.MethodResolveUser: {
			valid:  func(*stage, *client) proto.Message { return &qpcpb.ResolveUserRequest{Username: "bob"} },
			fields: map[protoreflect.Name]rule{"username": username().but(qpcpb.CodeDomainUnknown, "domain")},
		},
		qpcpb.MethodResolveIdentity: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.ResolveIdentityRequest{IdentityKey: s.bob.key[:]}
			},
			fields: identity,
		},
		qpcpb.MethodListUsers: {
			valid: func(*stage, *client) proto.Message {
				return &qpcpb.ListUsersRequest{Prefix: "a", Limit: 1, After: "aa"}
			},
			fields: map[protoreflect.Name]rule{
				"prefix": append(text(strings.Repeat("a", 512)), put("513", strings.Repeat("a", 513), invalid)),
				"after":  append(text(strings.Repeat("a", 512)), put("513", strings.Repeat("a", 513), invalid)),
				"limit":  number(),
			},
		},
		qpcpb.MethodBlockUser: {
			valid:  func(s *stage, _ *client) proto.Message { return &qpcpb.BlockUserRequest{IdentityKey: s.root.key[:]} },
			fields: identity,
		},
		qpcpb.MethodUnblockUser: {
			valid:  func(s *stage, _ *client) proto.Message { return &qpcpb.UnblockUserRequest{IdentityKey: s.root.key[:]} },
			fields: identity,
		},
		qpcpb.MethodFetchKeyPackages: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.FetchKeyPackagesRequest{IdentityKey: s.root.key[:]}
			},
			fields: identity,
		},
		qpcpb.MethodRegisterDevice: {
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.RegisterDeviceRequest{DeviceId: s.device, DeviceName: "phone"}
			},
			fields: map[protoreflect.Name]rule{
				"device_id": fixed(16),
				"device_name": {
					put("empty", "", invalid), put("NUL", "pho\x00ne", invalid), put("line break", "a\nb", invalid), put("separator", "a\u2028b", invalid),
					put("64 characters", strings.Repeat("ä", 64), ok), put("65 characters", strings.Repeat("ä", 65), invalid), put("a megabyte", strings.Repeat("a", 1<<20), invalid),
				},
			},
		},
		qpcpb.MethodListDevices: {valid: func(*stage, *client) proto.Message { return &qpcpb.ListDevicesRequest{} }},
		qpcpb.MethodRevokeDevice: {
			who: passer,
			valid: func(s *stage, c *client) proto.Message {
				id := random(16)
				if _, err := qpcpb.NewDeviceClient(c).RegisterDevice(within(s.t), &qpcpb.RegisterDeviceRequest{DeviceId: id, DeviceName: "x"}); err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.RevokeDeviceRequest{DeviceId: id}
			},
			fields: map[protoreflect.Name]rule{"device_id": fixed(16)},
		},
		qpcpb.MethodHealth:        {valid: func(*stage, *client) proto.Message { return &qpcpb.HealthRequest{} }},
		qpcpb.MethodDeleteAccount: {who: passer, valid: func(*stage, *client) proto.Message { return &qpcpb.DeleteAccountRequest{} }},
		qpcpb.MethodLogout: {
			who:    passer,
			valid:  func(*stage, *client) proto.Message { return &qpcpb.LogoutRequest{} },
			fields: map[protoreflect.Name]rule{"all_sessions": number()},
		},
		qpcpb.MethodChangePasswordStart: {
			valid: func(s *stage, _ *client) proto.Message {
				_, request, err := opaque.NewRegistration(rand.Reader, []byte("x"))
				if err != nil {
					s.t.Fatal(err)
				}
				return &qpcpb.ChangePasswordStartRequest{Request: request}
			},
			fields: map[protoreflect.Name]rule{"request": fixed(opaque.RegistrationRequestLength)},
		},
		qpcpb.MethodChangePasswordFinish: {
			who: passer,
			valid: func(s *stage, _ *client) proto.Message {
				return &qpcpb.ChangePasswordFinishRequest{Upload: s.registerFinish(person("anybody")).Upload}
			},
			fields: map[protoreflect.Name]rule{"upload": fixed(opaque.RegistrationUploadLength)},
		},
	}
}

// keyOfPasser is the identity of the last passer.
func (s *stage) keyOfPasser() []byte {
	key := person(fmt.Sprintf("passer%d", s.made)).key
	return key[:]
}

// wrongUTF8 returns the payload with a string field that ends in a byte that
// is not UTF-8.
func wrongUTF8(payload []byte, fd protoreflect.FieldDescriptor) []byte {
	b := protowire.AppendTag(bytes.Clone(payload), fd.Number(), protowire.BytesType)
	return protowire.AppendString(b, "alice\xff")
}

func newStage(t testing.TB) *stage {
	root := person("root")
	s := &stage{house: open(t, t.TempDir(), func(c *config.Config) {
		c.Admins = []config.IdentityKey{config.IdentityKey(root.key)}
		c.QueueMessages, c.QueueBytes = 1<<20, 1<<40
		c.PushHosts = []string{"192.0.2.1"} // nobody's (RFC 5737), and never dialled: alice stays connected
	}, func(s *Server) {
		s.sweepers = nil // its clock runs ahead by hours, and only requests are to change anything
	})}
	s.alice, s.bob, s.root = s.settle(person("alice")), s.settle(person("bob")), s.settle(root)
	s.stranger = s.pipe()
	s.user, s.admin = s.pipe().resume(s.alice), s.pipe().resume(s.root)
	s.device = random(16)
	if _, err := qpcpb.NewDeviceClient(s.user).RegisterDevice(within(t), &qpcpb.RegisterDeviceRequest{DeviceId: s.device, DeviceName: "phone"}); err != nil {
		t.Fatal(err)
	}
	channel, err := qpcpb.NewChannelClient(s.user).CreateChannel(within(t), &qpcpb.CreateChannelRequest{PeerKey: s.bob.key[:]})
	if err != nil {
		t.Fatal(err)
	}
	s.channel = channel.ChannelId
	return s
}

// registerFinish makes a registration's last message. One upload serves all
// names: it takes an Argon2id, and the server cannot look into it.
func (s *stage) registerFinish(u *user) *qpcpb.OpaqueRegisterFinishRequest {
	s.t.Helper()
	if s.upload == nil {
		s.upload = s.stranger.registration(u).Upload
	}
	return &qpcpb.OpaqueRegisterFinishRequest{
		Username: u.name, Upload: s.upload, IdentityKey: u.key[:], IdentityProof: proof.SignIdentity(u.private, u.name, s.upload),
	}
}
