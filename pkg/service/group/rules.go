package group

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// sorted puts a pair in the order in which it is stored.
func sorted(a, b rpc.IdentityKey) (low, high rpc.IdentityKey) {
	if bytes.Compare(a[:], b[:]) > 0 {
		return b, a
	}
	return a, b
}

func contains(members []rpc.IdentityKey, identity rpc.IdentityKey) bool {
	return slices.Contains(members, identity)
}

// derivedLabel begins what the id of a channel between two servers is the hash
// of.
const derivedLabel = "qpc federated channel v1"

// derivedChannel returns the id of the channel of a sorted pair on two servers:
// the first 16 bytes of SHA-256(label, low key, high key).
func derivedChannel(low, high rpc.IdentityKey) rpc.ChannelID {
	hash := sha256.Sum256(slices.Concat([]byte(derivedLabel), low[:], high[:]))
	return rpc.ChannelID(hash[:16])
}

// caller is who calls a method of groups.
type caller struct {
	identity  rpc.IdentityKey
	device    rpc.DeviceID
	hasDevice bool
	// remote is set for a user of another server, whose devices are not known
	// here and who reaches only groups whose home is here.
	remote bool
}

// roster is a group as it stands.
type roster struct {
	rowid          int64 // 0: not stored yet
	id             rpc.ChannelID
	home           string // domain, empty for this server
	version, epoch uint64
	metadata       []byte
	members        []member // the longest-standing first
}

// member is one member of a group.
type member struct {
	identity rpc.IdentityKey
	place    int64 // order of joining
	joinedAt int64 // Unix seconds
	owner    bool
	address  string // user@domain, empty for one who lives here
}

// find returns the index of a member, or -1.
func (r *roster) find(identity rpc.IdentityKey) int {
	return slices.IndexFunc(r.members, func(m member) bool { return m.identity == identity })
}

// next returns a copy of r that a change may be made to, one version on.
func (r *roster) next() *roster {
	after := *r
	after.version++
	after.members = slices.Clone(r.members)
	return &after
}

// without returns r after a member has left.
func (r *roster) without(identity rpc.IdentityKey) *roster {
	after := r.next()
	after.remove(identity)
	after.settle()
	return after
}

func (r *roster) remove(identity rpc.IdentityKey) {
	if i := r.find(identity); i >= 0 {
		r.members = slices.Delete(r.members, i, i+1)
	}
}

// add puts a member at the end.
func (r *roster) add(m member) {
	m.place = 1
	if n := len(r.members); n > 0 {
		m.place = r.members[n-1].place + 1
	}
	r.members = append(r.members, m)
}

// settle gives a group whose owner has left to its longest-standing member.
func (r *roster) settle() {
	if len(r.members) > 0 && !slices.ContainsFunc(r.members, func(m member) bool { return m.owner }) {
		r.members[0].owner = true
	}
}

// local returns how many members live here.
func (r *roster) local() (n int) {
	for _, m := range r.members {
		if m.address == "" {
			n++
		}
	}
	return n
}

// domains adds the domains of the members who live elsewhere.
func (r *roster) domains(to []string) []string {
	for _, m := range r.members {
		if m.address != "" && !slices.Contains(to, domainOf(m.address)) {
			to = append(to, domainOf(m.address))
		}
	}
	return to
}

// parseGroup checks a field that must be a group id.
func parseGroup(b []byte) (rpc.ChannelID, error) {
	id, ok, err := rpc.ParseChannelID("group_id", b)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeInvalidField, "group_id is missing; it has 16 bytes")
	}
	return id, err
}

// parseKeys checks a field that lists identity keys.
func parseKeys(field string, list [][]byte) ([]rpc.IdentityKey, error) {
	if len(list) > MaxMembers {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "%s has %d entries where %d are allowed", field, len(list), MaxMembers)
	}
	keys := make([]rpc.IdentityKey, len(list))
	for i, b := range list {
		key, err := rpc.ParseIdentityKey(field, b)
		if err != nil {
			return nil, err
		}
		keys[i] = key
	}
	return keys, nil
}

// rotation is a RotateKeysRequest whose form is right.
type rotation struct {
	group       rpc.ChannelID
	epoch       uint64
	commit      []byte // for all, or
	recipients  []rpc.IdentityKey
	payloads    [][]byte // one for each recipient
	add, remove []rpc.IdentityKey
	welcomes    [][]byte // one for each of add
	digest      [32]byte // of all of this
}

// parseRotation checks the form of a request: what can be said of it without
// the group.
func parseRotation(r *qpcpb.RotateKeysRequest) (t rotation, err error) {
	t = rotation{epoch: r.Epoch, commit: r.Commit, payloads: r.Payloads, welcomes: r.Welcomes}
	if t.group, err = parseGroup(r.GroupId); err != nil {
		return t, err
	}
	for _, f := range []struct {
		name string
		list [][]byte
		to   *[]rpc.IdentityKey
	}{
		{"recipient_keys", r.RecipientKeys, &t.recipients},
		{"add_members", r.AddMembers, &t.add},
		{"remove_members", r.RemoveMembers, &t.remove},
	} {
		if *f.to, err = parseKeys(f.name, f.list); err != nil {
			return t, err
		}
	}
	switch {
	case len(t.commit) > 0 && len(t.recipients)+len(t.payloads) > 0:
		return t, rpc.Errorf(qpcpb.CodeInvalidField, "give either commit, or recipient_keys and payloads")
	case len(t.payloads) != len(t.recipients):
		return t, rpc.Errorf(qpcpb.CodeInvalidField, "payloads has %d entries for %d recipients", len(t.payloads), len(t.recipients))
	case len(t.welcomes) != len(t.add):
		return t, rpc.Errorf(qpcpb.CodeInvalidField, "welcomes has %d entries for %d members to add", len(t.welcomes), len(t.add))
	}
	for i, key := range t.recipients {
		if slices.Contains(t.recipients[:i], key) {
			return t, rpc.Errorf(qpcpb.CodeInvalidField, "recipient_keys names one member twice")
		}
	}
	for _, key := range t.add {
		if slices.Contains(t.remove, key) {
			return t, rpc.Errorf(qpcpb.CodeInvalidField, "add_members and remove_members name the same identity; a device that comes anew stands in add_members alone")
		}
	}
	for _, b := range slices.Concat([][]byte{t.commit}, t.payloads, t.welcomes) {
		if len(b) > maxPayload {
			return t, rpc.Errorf(qpcpb.CodePayloadTooLarge, "a commit or Welcome has %d bytes where %d are allowed", len(b), maxPayload)
		}
	}
	for _, b := range slices.Concat(t.payloads, t.welcomes) {
		if len(b) == 0 {
			return t, rpc.Errorf(qpcpb.CodeInvalidField, "payloads or welcomes has an empty entry")
		}
	}
	t.digest = digestOf(r)
	return t, nil
}

// digestOf returns a hash of what a RotateKeys says, by which its repetition is
// recognised. It does not hash the protobuf, whose bytes may differ from one
// version of the library to the next.
func digestOf(r *qpcpb.RotateKeysRequest) (digest [32]byte) {
	h := sha256.New()
	number := func(n int) { h.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) }
	h.Write(binary.BigEndian.AppendUint64(nil, r.Epoch))
	for _, list := range [][][]byte{
		{r.GroupId, r.Commit}, r.RecipientKeys, r.Payloads, r.AddMembers, r.Welcomes, r.RemoveMembers,
	} {
		number(len(list))
		for _, b := range list {
			number(len(b))
			h.Write(b)
		}
	}
	h.Sum(digest[:0])
	return digest
}

// commitTo is a commit on its way to one member.
type commitTo struct {
	to      member
	payload []byte
}

// commits returns what each member of the group is sent. A commit for all goes
// to the caller too when itself is set. Of commits one for each member the
// caller's own may be left out.
func (t rotation) commits(r *roster, self rpc.IdentityKey, itself bool) ([]commitTo, error) {
	var out []commitTo
	if len(t.commit) > 0 {
		for _, m := range r.members {
			if m.identity != self || itself {
				out = append(out, commitTo{m, t.commit})
			}
		}
		if size := len(out) * len(t.commit); size > maxPosted {
			return nil, rpc.Errorf(qpcpb.CodePayloadTooLarge, "the commit takes %d bytes for all members where %d are allowed", size, maxPosted)
		}
		return out, nil
	}
	for i, key := range t.recipients {
		at := r.find(key)
		if at < 0 {
			return nil, rpc.Errorf(qpcpb.CodeInvalidField, "recipient_keys names somebody who is no member; list the members and try again")
		}
		out = append(out, commitTo{r.members[at], t.payloads[i]})
	}
	for _, m := range r.members {
		if m.identity != self && !slices.Contains(t.recipients, m.identity) {
			return nil, rpc.Errorf(qpcpb.CodeInvalidField, "recipient_keys lacks a member, or there is no commit; list the members and try again")
		}
	}
	return out, nil
}
