package reach

import (
	"context"
	"slices"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

var (
	_ qpcpb.EndpointServer  = (*Service)(nil)
	_ qpcpb.PushTokenServer = (*Service)(nil)
)

// PublishEndpoint stores or takes back the caller's endpoint.
func (s *Service) PublishEndpoint(ctx context.Context, request *qpcpb.PublishEndpointRequest) (*qpcpb.PublishEndpointResponse, error) {
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	if identity != rpc.PrincipalOf(ctx).Identity {
		return nil, rpc.Errorf(qpcpb.CodeNotYours, "you can only publish an endpoint of your own")
	}
	if n := len(request.Address); n > MaxAddress {
		return nil, rpc.Errorf(qpcpb.CodePayloadTooLarge, "address has %d bytes where %d are allowed", n, MaxAddress)
	}
	until := s.options.DB.ServiceTime() + endpointTTL(request.TtlSecs)
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		if len(request.Address) == 0 {
			return deleteEndpoint(tx, identity)
		}
		if err := s.checkAccountTx(tx, identity); err != nil {
			return err
		}
		return putEndpoint(tx, identity, request.Address, until)
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.PublishEndpointResponse{Success: true}, nil
}

// checkAccountTx refuses an account that was deleted while the call was on its
// way: nobody would remove what it leaves.
func (s *Service) checkAccountTx(tx *store.Tx, identity rpc.IdentityKey) error {
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
	}
	return err
}

// ResolveEndpoint returns somebody's endpoint. That they have none, do not
// share a channel with the caller, or have blocked them is one answer.
func (s *Service) ResolveEndpoint(ctx context.Context, request *qpcpb.ResolveEndpointRequest) (*qpcpb.ResolveEndpointResponse, error) {
	identity, err := rpc.ParseIdentityKey("identity_key", request.IdentityKey)
	if err != nil {
		return nil, err
	}
	caller := rpc.PrincipalOf(ctx).Identity
	response := &qpcpb.ResolveEndpointResponse{}
	err = s.options.DB.Read(ctx, func(tx *store.Tx) error {
		now := s.options.DB.ServiceTime()
		address, until, ok, err := readEndpoint(tx, identity, now)
		if err == nil && ok {
			ok, err = s.mayLearnTx(tx, caller, identity)
		}
		if err != nil {
			return err
		}
		if !ok {
			return rpc.Errorf(qpcpb.CodeEndpointNotFound, "they have published no endpoint, or none for you")
		}
		left := time.Duration(until-now) * time.Second
		response.Address, response.ExpiresAt = address, uint64(max(0, s.options.Now().Add(left).Unix()))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return response, nil
}

func (s *Service) mayLearnTx(tx *store.Tx, caller, publisher rpc.IdentityKey) (bool, error) {
	if caller == publisher {
		return true, nil
	}
	blocked, err := s.options.Blocks.BlockedTx(tx, publisher, caller)
	if err != nil || blocked {
		return false, err
	}
	contacts, err := s.options.Contacts.ContactsTx(tx, publisher)
	return slices.Contains(contacts, caller), err
}

// RegisterPushToken stores or removes the push token of a device.
func (s *Service) RegisterPushToken(ctx context.Context, request *qpcpb.RegisterPushTokenRequest) (*qpcpb.RegisterPushTokenResponse, error) {
	device, ok, err := rpc.ParseDeviceID("device_id", request.DeviceId)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeInvalidField, "device_id is empty where 16 bytes are wanted")
	}
	if err != nil {
		return nil, err
	}
	if request.Platform != PlatformUnifiedPush {
		return nil, rpc.Errorf(qpcpb.CodeInvalidField, "platform is not %q, the only one there is", PlatformUnifiedPush)
	}
	if request.Token != "" {
		host, err := pushHost(request.Token)
		if err != nil {
			return nil, err
		}
		if !s.hosts[host] {
			return nil, rpc.Errorf(qpcpb.CodePushHostRefused, "the server's owner has not listed the host of this push address (setting push_host)")
		}
	}
	identity := rpc.PrincipalOf(ctx).Identity
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		exists, err := s.options.Devices.ExistsTx(tx, identity, device)
		if err != nil {
			return err
		}
		if !exists {
			return rpc.Errorf(qpcpb.CodeDeviceNotFound, "no device of yours has this id; register it first")
		}
		if request.Token == "" {
			return deleteToken(tx, identity, device)
		}
		return putToken(tx, identity, device, request.Token)
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.RegisterPushTokenResponse{Success: true}, nil
}
