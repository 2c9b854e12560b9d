package keys

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

// remoteAtOnce bounds the questions to other servers that one call has under
// way.
const remoteAtOnce = 8

// homeOf returns the domain that an identity lives on, or "" for here.
func (s *Service) homeOf(ctx context.Context, identity rpc.IdentityKey) (home string, err error) {
	if s.options.Remote == nil {
		return "", nil
	}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		home, _, err = s.options.Remote.HomeTx(tx, identity)
		return err
	})
	return home, err
}

// badPeer is the answer when another server gives what is no key.
func badPeer(home string) error {
	return rpc.Errorf(qpcpb.CodePeerUnreachable, "%s does not answer as it should; its owner has to look", home)
}

// remotePackage takes a key package of somebody who lives elsewhere; it is empty
// when there is none.
func (s *Service) remotePackage(ctx context.Context, home string, owner rpc.IdentityKey) ([]byte, error) {
	pkg, err := s.options.Remote.KeyPackageOf(ctx, home, owner)
	if err != nil || len(pkg) == 0 {
		return nil, err
	}
	if checkPackage(pkg) != nil {
		return nil, badPeer(home)
	}
	return pkg, nil
}

// remotePackages is remotePackage in the form of one for each device.
func (s *Service) remotePackages(ctx context.Context, home string, owner rpc.IdentityKey) (*qpcpb.FetchKeyPackagesResponse, error) {
	pkg, err := s.remotePackage(ctx, home, owner)
	if err != nil {
		return nil, err
	}
	response := &qpcpb.FetchKeyPackagesResponse{}
	if len(pkg) > 0 {
		response.Packages = []*qpcpb.KeyPackageEntry{{Package: pkg}}
	}
	return response, nil
}

// remoteHybrid fetches the hybrid keys of those who live elsewhere into public.
// One server that does not answer fails the call: a key left out would read as
// one that does not exist.
func (s *Service) remoteHybrid(ctx context.Context, identities []rpc.IdentityKey, homes []string, public [][]byte) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(remoteAtOnce)
	for i, home := range homes {
		if home == "" {
			continue
		}
		group.Go(func() error {
			key, err := s.options.Remote.HybridKeyOf(ctx, home, identities[i])
			if err == nil && len(key) != 0 && len(key) != HybridKeySize {
				err = badPeer(home)
			}
			public[i] = key
			return err
		})
	}
	return group.Wait()
}

// KeyPackageFor takes one key package of an identity for somebody on another
// server, whose calls that server's own limit counts; it is empty when there is
// none.
func (s *Service) KeyPackageFor(ctx context.Context, owner rpc.IdentityKey) ([]byte, error) {
	_, packages, err := s.take(ctx, owner, pickFirst)
	if err != nil || len(packages) == 0 {
		return nil, err
	}
	return packages[0], nil
}

// HybridKeyFor returns the hybrid key of an identity for somebody on another
// server; it is empty when there is none.
func (s *Service) HybridKeyFor(ctx context.Context, owner rpc.IdentityKey) (key []byte, err error) {
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		key, err = readHybrid(tx, owner)
		return err
	})
	return key, err
}

// pickFirst is pickOne in the form that take wants.
func pickFirst(stock []shelf) []choice {
	if c, ok := pickOne(stock); ok {
		return []choice{c}
	}
	return nil
}
