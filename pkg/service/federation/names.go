package federation

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/tlog"
	"github.com/quicprochat/qpcd/pkg/username"
)

// Domain returns this server's own domain.
func (s *Service) Domain() string { return s.options.Domain }

// HomeTx returns the domain that an identity lives on; ok is false for one that
// lives here or that nobody has met. The domain need not be a peer any more.
func (s *Service) HomeTx(tx *store.Tx, identity rpc.IdentityKey) (domain string, ok bool, err error) {
	b, ok, err := s.homeTx(tx, identity)
	return b.domain, ok, err
}

// AddressTx returns user@domain of an identity that lives on another server; ok
// is false as with HomeTx. Where the name is not known, the beginning of the
// key stands in its place.
func (s *Service) AddressTx(tx *store.Tx, identity rpc.IdentityKey) (address string, ok bool, err error) {
	b, ok, err := s.homeTx(tx, identity)
	if err != nil || !ok {
		return "", false, err
	}
	if b.username == "" {
		b.username = identity.String()[:username.MaxLength]
	}
	return username.Address{User: b.username, Domain: b.domain}.String(), true, nil
}

func (s *Service) homeTx(tx *store.Tx, identity rpc.IdentityKey) (binding, bool, error) {
	b, ok, err := readBinding(tx, identity)
	if err != nil || !ok {
		return binding{}, false, err
	}
	here, err := s.options.Accounts.ExistsTx(tx, identity)
	return b, err == nil && !here, err
}

// bindTx notes where an identity lives. A claim only fills a gap; what is known
// better stays. ORIGIN_MISMATCH: the identity lives here, or on a domain that
// has vouched for it. QUOTA_EXCEEDED: the domain has too many.
func (s *Service) bindTx(tx *store.Tx, identity rpc.IdentityKey, b binding) error {
	here, err := s.options.Accounts.ExistsTx(tx, identity)
	if err != nil {
		return err
	}
	if here {
		return rpc.Errorf(qpcpb.CodeOriginMismatch, "this identity lives on the server that you call")
	}
	known, ok, err := readBinding(tx, identity)
	switch {
	case err != nil:
		return err
	case ok && known.domain != b.domain && b.standing == claimed:
		return nil
	case ok && known.domain != b.domain && known.standing != claimed:
		return rpc.Errorf(qpcpb.CodeOriginMismatch, "this identity is known to live on another server")
	case ok && known.domain == b.domain && known.standing >= b.standing && (known.username == b.username || b.username == "" || b.standing == claimed):
		return nil // nothing new
	case !ok || known.domain != b.domain:
		n, err := countBindings(tx, b.domain)
		if err != nil {
			return err
		}
		if n >= MaxIdentities {
			return rpc.Errorf(qpcpb.CodeQuotaExceeded, "%d identities of yours are known, the most that there may be", MaxIdentities)
		}
	}
	return writeBinding(tx, identity, b)
}

// ResolveUser asks another server for the identity of a name, verifies that the
// binding is in its log, and remembers where the identity lives. The proof is
// the other server's InclusionProof as it came.
//
// DOMAIN_UNKNOWN: the domain is no peer. USER_NOT_FOUND. PEER_UNREACHABLE.
// ORIGIN_MISMATCH: the peer's answer contradicts its log, or what is known of
// the identity.
func (s *Service) ResolveUser(ctx context.Context, who username.Address) (identity rpc.IdentityKey, inclusion []byte, err error) {
	p, ok := s.find(who.Domain)
	if !ok {
		return identity, nil, unknownDomain(who.Domain)
	}
	if err := s.admitUser(ctx); err != nil {
		return identity, nil, err
	}
	// One at a time: what is known of the log must not grow between an answer
	// and its comparison.
	select {
	case p.asking <- struct{}{}:
		defer func() { <-p.asking }()
	case <-ctx.Done():
		return identity, nil, ctx.Err()
	}
	var answer *qpcpb.ProxyResolveUserResponse
	var known trust
	err = p.ask(ctx, func(ctx context.Context, calls qpcpb.FederationClient) (err error) {
		// The first contact, which ask has made, tells the key.
		if known, err = p.known(ctx); err != nil {
			return err
		}
		head, err := headOf(who.Domain, known)
		if err != nil {
			return err
		}
		answer, err = calls.ProxyResolveUser(ctx, &qpcpb.ProxyResolveUserRequest{Username: who.User, Auth: s.auth(), KnownSize: head.Size})
		return err
	})
	if err != nil {
		return identity, nil, err
	}
	identity, checkpoint, err := verify(who, answer, known)
	if err != nil {
		p.note(err)
		return identity, nil, answerOf(who.Domain, err)
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if err := s.bindTx(tx, identity, binding{domain: who.Domain, username: who.User, standing: proven}); err != nil {
			return err
		}
		t, err := p.trustTx(tx)
		if err != nil || t.checkpoint == checkpoint {
			return err
		}
		t.checkpoint = checkpoint
		return writeTrust(tx, p.domain, t)
	})
	if err == nil {
		p.note(nil)
	}
	if rpc.CodeOf(err) == qpcpb.CodeOriginMismatch {
		err = rpc.Errorf(qpcpb.CodeOriginMismatch, "%s says that %s is somebody who is known to live elsewhere", who.Domain, who)
	}
	return identity, answer.InclusionProof, err
}

// known returns what is known of the peer.
func (p *peer) known(ctx context.Context) (t trust, err error) {
	err = p.service.options.DB.Read(ctx, func(tx *store.Tx) error {
		t, err = p.trustTx(tx)
		return err
	})
	return t, err
}

// headOf returns the last head of a peer's log that was seen.
func headOf(domain string, known trust) (tlog.Checkpoint, error) {
	if known.checkpoint == "" {
		return tlog.Checkpoint{Root: tlog.EmptyRoot()}, nil
	}
	head, err := tlog.Open(known.checkpoint, tlog.Origin(domain), known.serverKey)
	if err != nil {
		return head, fmt.Errorf("read the last checkpoint of %s: %w", domain, err)
	}
	return head, nil
}

// verify checks that an answer's binding is in a log that continues the one
// known, and returns its checkpoint.
func verify(who username.Address, answer *qpcpb.ProxyResolveUserResponse, known trust) (identity rpc.IdentityKey, checkpoint string, err error) {
	if identity, err = rpc.ParseIdentityKey("identity_key", answer.IdentityKey); err != nil {
		return identity, "", mismatch(who.Domain, "it answers a name with something that is no identity key")
	}
	var inclusion qpcpb.InclusionProof
	if err := proto.Unmarshal(answer.InclusionProof, &inclusion); err != nil || len(answer.InclusionProof) == 0 {
		return identity, "", mismatch(who.Domain, "it gives no proof that %s is in its log of names", who)
	}
	last, err := headOf(who.Domain, known)
	if err != nil {
		return identity, "", err
	}
	head, err := tlog.Open(inclusion.Checkpoint, tlog.Origin(who.Domain), known.serverKey)
	if err != nil {
		return identity, "", mismatch(who.Domain, "its checkpoint is not signed by its key: %v", err)
	}
	switch {
	case head.Size < last.Size:
		return identity, "", mismatch(who.Domain, "its log has shrunk from %d entries to %d", last.Size, head.Size)
	case head.Size == last.Size && head.Root != last.Root:
		return identity, "", mismatch(who.Domain, "it shows two logs of %d entries", head.Size)
	case head.Size > last.Size && last.Size > 0:
		if err := tlog.VerifyConsistency(last, head, answer.Consistency); err != nil {
			return identity, "", mismatch(who.Domain, "its log does not continue the one known: %v", err)
		}
	}
	if inclusion.TreeSize != head.Size {
		return identity, "", mismatch(who.Domain, "its proof is for %d entries, its checkpoint for %d", inclusion.TreeSize, head.Size)
	}
	if err := tlog.VerifyInclusion(head, inclusion.LeafIndex, tlog.BindingLeaf(who.User, identity), inclusion.Hashes); err != nil {
		return identity, "", mismatch(who.Domain, "%s is not in its log of names: %v", who, err)
	}
	return identity, inclusion.Checkpoint, nil
}

// AddressOf returns user@domain of an identity that lives on another server. A
// name that is not proven yet is looked up first. ok is false for an identity
// that lives here or that nobody has met, or whose server gives its name to
// another.
func (s *Service) AddressOf(ctx context.Context, identity rpc.IdentityKey) (address string, ok bool, err error) {
	var b binding
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		b, ok, err = s.homeTx(tx, identity)
		return err
	})
	if err != nil || !ok || b.username == "" {
		return "", false, err
	}
	who := username.Address{User: b.username, Domain: b.domain}
	if b.standing == proven {
		return who.String(), true, nil
	}
	bearer, _, err := s.ResolveUser(ctx, who)
	if rpc.CodeOf(err) == qpcpb.CodeUserNotFound {
		return "", false, nil
	}
	return who.String(), bearer == identity, err
}

// KeyPackageOf takes a key package of an identity that lives on a domain; it is
// empty when there is none.
func (s *Service) KeyPackageOf(ctx context.Context, domain string, identity rpc.IdentityKey) (pkg []byte, err error) {
	err = s.ask(ctx, domain, func(ctx context.Context, calls qpcpb.FederationClient) error {
		response, err := calls.ProxyFetchKeyPackage(ctx, &qpcpb.ProxyFetchKeyPackageRequest{IdentityKey: identity[:], Auth: s.auth()})
		pkg = response.GetPackage()
		return err
	})
	return pkg, err
}

// HybridKeyOf returns the hybrid key of an identity that lives on a domain; it
// is empty when there is none.
func (s *Service) HybridKeyOf(ctx context.Context, domain string, identity rpc.IdentityKey) (key []byte, err error) {
	err = s.ask(ctx, domain, func(ctx context.Context, calls qpcpb.FederationClient) error {
		response, err := calls.ProxyFetchHybridKey(ctx, &qpcpb.ProxyFetchHybridKeyRequest{IdentityKey: identity[:], Auth: s.auth()})
		key = response.GetHybridPublicKey()
		return err
	})
	return key, err
}

// RotateKeys calls the home of a group for a user of this server.
func (s *Service) RotateKeys(ctx context.Context, home string, caller rpc.IdentityKey, request *qpcpb.RotateKeysRequest) (response *qpcpb.RotateKeysResponse, err error) {
	err = s.ask(ctx, home, func(ctx context.Context, calls qpcpb.FederationClient) error {
		response, err = calls.ProxyRotateKeys(ctx, &qpcpb.ProxyRotateKeysRequest{Auth: s.auth(), SenderKey: caller[:], Request: request})
		return err
	})
	return response, err
}

// UpdateGroupMetadata calls the home of a group for a user of this server.
func (s *Service) UpdateGroupMetadata(ctx context.Context, home string, caller rpc.IdentityKey, request *qpcpb.UpdateGroupMetadataRequest) (response *qpcpb.UpdateGroupMetadataResponse, err error) {
	err = s.ask(ctx, home, func(ctx context.Context, calls qpcpb.FederationClient) error {
		response, err = calls.ProxyUpdateGroupMetadata(ctx, &qpcpb.ProxyUpdateGroupMetadataRequest{Auth: s.auth(), SenderKey: caller[:], Request: request})
		return err
	})
	return response, err
}

// RemoveMember calls the home of a group for a user of this server.
func (s *Service) RemoveMember(ctx context.Context, home string, caller rpc.IdentityKey, request *qpcpb.RemoveMemberRequest) (response *qpcpb.RemoveMemberResponse, err error) {
	err = s.ask(ctx, home, func(ctx context.Context, calls qpcpb.FederationClient) error {
		response, err = calls.ProxyRemoveMember(ctx, &qpcpb.ProxyRemoveMemberRequest{Auth: s.auth(), SenderKey: caller[:], Request: request})
		return err
	})
	return response, err
}

// ask makes a call to a domain that a user waits for.
func (s *Service) ask(ctx context.Context, domain string, call func(context.Context, qpcpb.FederationClient) error) error {
	p, ok := s.find(domain)
	if !ok {
		return unknownDomain(domain)
	}
	if err := s.admitUser(ctx); err != nil {
		return err
	}
	return p.ask(ctx, call)
}

// admitUser counts a question to a peer for the user who causes it.
func (s *Service) admitUser(ctx context.Context) error {
	user := rpc.PrincipalOf(ctx)
	if user == nil {
		return nil
	}
	if wait, ok := s.users.Take(user.Identity, 1); !ok {
		return rpc.Errorf(qpcpb.CodeRateLimited, "you ask other servers too much; wait and try again").After(wait)
	}
	return nil
}
