package keys

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/quicprochat/qpcd/pkg/push"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

var _ qpcpb.KeyServer = (*Service)(nil)

// ownKey checks that a field names the caller.
func ownKey(ctx context.Context, field []byte) (rpc.IdentityKey, error) {
	key, err := rpc.ParseIdentityKey("identity_key", field)
	if err == nil && key != rpc.PrincipalOf(ctx).Identity {
		err = rpc.Errorf(qpcpb.CodeNotYours, "identity_key is another's; store keys for your own only")
	}
	return key, err
}

// existsTx refuses to store anything for an account that was deleted while the
// call was on its way: nobody would remove it again.
func (s *Service) existsTx(tx *store.Tx, identity rpc.IdentityKey) error {
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
	}
	return err
}

// UploadKeyPackage stores a key package of the caller (method 300).
func (s *Service) UploadKeyPackage(ctx context.Context, request *qpcpb.UploadKeyPackageRequest) (*qpcpb.UploadKeyPackageResponse, error) {
	identity, err := ownKey(ctx, request.IdentityKey)
	if err != nil {
		return nil, err
	}
	if _, _, err := rpc.ParseDeviceID("device_id", request.DeviceId); err != nil {
		return nil, err
	}
	if err := checkPackage(request.Package); err != nil {
		return nil, err
	}
	var remaining int
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		remaining, err = s.addTx(tx, identity, request.DeviceId, request.Package, request.LastResort)
		return err
	})
	if err != nil {
		return nil, err
	}
	fingerprint := sha256.Sum256(request.Package)
	return &qpcpb.UploadKeyPackageResponse{Fingerprint: fingerprint[:], Remaining: uint32(remaining)}, nil
}

// addTx stores a package and returns how many one-time packages the device has
// then.
func (s *Service) addTx(tx *store.Tx, identity rpc.IdentityKey, device, pkg []byte, lastResort bool) (remaining int, err error) {
	if err := s.existsTx(tx, identity); err != nil {
		return 0, err
	}
	now := s.options.DB.ServiceTime()
	stock, err := readStock(tx, identity, now)
	if err != nil {
		return 0, err
	}
	have := countHoldings(stock, device)
	if !have.known && have.devices >= MaxDevices {
		return 0, rpc.Errorf(qpcpb.CodeKeyPackageLimit, "key packages of %d devices are stored already; revoke a device first", MaxDevices)
	}
	validUntil := now + int64(lifetime/time.Second)
	if lastResort {
		return have.ofDevice, putLastResort(tx, identity, device, pkg, validUntil)
	}
	if again, err := hasOneTime(tx, identity, device, pkg); err != nil || again {
		return have.ofDevice, err
	}
	if have.total >= MaxOneTime {
		return 0, rpc.Errorf(qpcpb.CodeKeyPackageLimit, "%d key packages are stored already; upload more when some have been used", MaxOneTime)
	}
	// Expired rows are not counted, so they must not pile up here until the
	// sweeper comes.
	if err := deleteExpiredOf(tx, identity, now); err != nil {
		return 0, err
	}
	return have.ofDevice + 1, insertOneTime(tx, identity, device, pkg, validUntil)
}

// admitFetch checks a request for key packages and counts it.
func (s *Service) admitFetch(ctx context.Context, field []byte) (rpc.IdentityKey, error) {
	owner, err := rpc.ParseIdentityKey("identity_key", field)
	if err != nil {
		return owner, err
	}
	wait, ok := s.fetches.Take(fetch{caller: rpc.PrincipalOf(ctx).Identity, owner: owner}, 1)
	if !ok {
		return owner, rpc.Errorf(qpcpb.CodeRateLimited, "at most %d key packages of one identity a minute; wait and try again", fetchesPerMinute).After(wait)
	}
	return owner, nil
}

// take gives out packages of owner as pick chooses them, and warns owner when
// few are left.
func (s *Service) take(ctx context.Context, owner rpc.IdentityKey, pick func([]shelf) []choice) (choices []choice, packages [][]byte, err error) {
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		stock, err := readStock(tx, owner, s.options.DB.ServiceTime())
		if err != nil {
			return err
		}
		choices = pick(stock)
		for _, c := range choices {
			pkg, err := takePackage(tx, c)
			if err != nil {
				return err
			}
			packages = append(packages, pkg)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	if left := leastLeft(choices); left < lowPackages {
		s.options.Push.Send(owner, push.Event{
			Kind:    qpcpb.EventKeyPackagesLow,
			Message: &qpcpb.KeyPackagesLow{Remaining: uint32(left)},
		})
	}
	return choices, packages, nil
}

// FetchKeyPackage takes one key package of an identity (method 301).
func (s *Service) FetchKeyPackage(ctx context.Context, request *qpcpb.FetchKeyPackageRequest) (*qpcpb.FetchKeyPackageResponse, error) {
	owner, err := s.admitFetch(ctx, request.IdentityKey)
	if err != nil {
		return nil, err
	}
	if home, err := s.homeOf(ctx, owner); err != nil || home != "" {
		if err != nil {
			return nil, err
		}
		pkg, err := s.remotePackage(ctx, home, owner)
		return &qpcpb.FetchKeyPackageResponse{Package: pkg}, err
	}
	choices, packages, err := s.take(ctx, owner, pickFirst)
	if err != nil {
		return nil, err
	}
	if len(choices) == 0 {
		return &qpcpb.FetchKeyPackageResponse{}, nil
	}
	return &qpcpb.FetchKeyPackageResponse{Package: packages[0], LastResort: choices[0].lastResort}, nil
}

// FetchKeyPackages takes one key package of each device of an identity
// (method 1030).
func (s *Service) FetchKeyPackages(ctx context.Context, request *qpcpb.FetchKeyPackagesRequest) (*qpcpb.FetchKeyPackagesResponse, error) {
	owner, err := s.admitFetch(ctx, request.IdentityKey)
	if err != nil {
		return nil, err
	}
	if home, err := s.homeOf(ctx, owner); err != nil || home != "" {
		if err != nil {
			return nil, err
		}
		return s.remotePackages(ctx, home, owner)
	}
	// Waiting for memory must not happen in the transaction, so the most that
	// the answer can be is reserved before it.
	if err := rpc.ReserveMemory(ctx, MaxDevices*MaxPackage); err != nil {
		return nil, err
	}
	choices, packages, err := s.take(ctx, owner, pickEach)
	if err != nil {
		return nil, err
	}
	response := &qpcpb.FetchKeyPackagesResponse{Packages: make([]*qpcpb.KeyPackageEntry, len(choices))}
	for i, c := range choices {
		response.Packages[i] = &qpcpb.KeyPackageEntry{DeviceId: c.device, Package: packages[i], LastResort: c.lastResort}
	}
	return response, nil
}

// UploadHybridKey stores the hybrid key of the caller (method 302).
func (s *Service) UploadHybridKey(ctx context.Context, request *qpcpb.UploadHybridKeyRequest) (*qpcpb.UploadHybridKeyResponse, error) {
	identity, err := ownKey(ctx, request.IdentityKey)
	if err != nil {
		return nil, err
	}
	if n := len(request.HybridPublicKey); n != HybridKeySize {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "hybrid_public_key has %d bytes where %d are wanted", n, HybridKeySize)
	}
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if err := s.existsTx(tx, identity); err != nil {
			return err
		}
		return putHybrid(tx, identity, request.HybridPublicKey)
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.UploadHybridKeyResponse{Success: true}, nil
}

// FetchHybridKey returns the hybrid key of an identity, empty when it has none
// or nobody has that identity key (method 303).
func (s *Service) FetchHybridKey(ctx context.Context, request *qpcpb.FetchHybridKeyRequest) (*qpcpb.FetchHybridKeyResponse, error) {
	found, err := s.hybridKeys(ctx, [][]byte{request.IdentityKey})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return &qpcpb.FetchHybridKeyResponse{}, nil
	}
	return &qpcpb.FetchHybridKeyResponse{HybridPublicKey: found[0].HybridPublicKey}, nil
}

// FetchHybridKeys returns the hybrid keys of up to 256 identities: of those
// that have one, in the order asked for (method 304).
func (s *Service) FetchHybridKeys(ctx context.Context, request *qpcpb.FetchHybridKeysRequest) (*qpcpb.FetchHybridKeysResponse, error) {
	if n := len(request.IdentityKeys); n > MaxHybridKeys {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "identity_keys has %d keys where %d are allowed; ask in parts", n, MaxHybridKeys)
	}
	found, err := s.hybridKeys(ctx, request.IdentityKeys)
	if err != nil {
		return nil, err
	}
	return &qpcpb.FetchHybridKeysResponse{Keys: found}, nil
}

// hybridKeys returns those of the identities that have a hybrid key.
func (s *Service) hybridKeys(ctx context.Context, fields [][]byte) ([]*qpcpb.HybridKey, error) {
	identities := make([]rpc.IdentityKey, len(fields))
	for i, field := range fields {
		var err error
		if identities[i], err = rpc.ParseIdentityKey("identity_key", field); err != nil {
			return nil, err
		}
	}
	if err := rpc.ReserveMemory(ctx, len(fields)*hybridEntry); err != nil {
		return nil, err
	}
	public := make([][]byte, len(identities))
	homes := make([]string, len(identities)) // empty: here
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		for i, identity := range identities {
			if public[i], err = readHybrid(tx, identity); err != nil {
				return err
			}
			if public[i] != nil || s.options.Remote == nil {
				continue
			}
			if homes[i], _, err = s.options.Remote.HomeTx(tx, identity); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		err = s.remoteHybrid(ctx, identities, homes, public)
	}
	if err != nil {
		return nil, err
	}
	var found []*qpcpb.HybridKey
	for i, key := range public {
		if len(key) > 0 {
			found = append(found, &qpcpb.HybridKey{IdentityKey: fields[i], HybridPublicKey: key})
		}
	}
	return found, nil
}
