package device

import (
	"context"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
)

var _ qpcpb.DeviceServer = (*Service)(nil)

// parseID reads a device id that must be there.
func parseID(field []byte) (rpc.DeviceID, error) {
	id, ok, err := rpc.ParseDeviceID("device_id", field)
	if err == nil && !ok {
		err = rpc.Errorf(qpcpb.CodeInvalidField, "device_id is empty where 16 bytes are wanted")
	}
	return id, err
}

// RegisterDevice adds a device of the caller, or renames one (method 700).
func (s *Service) RegisterDevice(ctx context.Context, request *qpcpb.RegisterDeviceRequest) (*qpcpb.RegisterDeviceResponse, error) {
	id, err := parseID(request.DeviceId)
	if err != nil {
		return nil, err
	}
	if err := checkName(request.DeviceName); err != nil {
		return nil, err
	}
	identity := rpc.PrincipalOf(ctx).Identity
	err = s.options.DB.Write(ctx, func(tx *store.Tx) error {
		return s.registerTx(tx, identity, id, request.DeviceName)
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.RegisterDeviceResponse{Success: true}, nil
}

func (s *Service) registerTx(tx *store.Tx, identity rpc.IdentityKey, id rpc.DeviceID, name string) error {
	// An account that was deleted while the call was on its way must not leave
	// a device behind that nobody removes.
	ok, err := s.options.Accounts.ExistsTx(tx, identity)
	if err != nil {
		return err
	}
	if !ok {
		return rpc.Errorf(qpcpb.CodeUnauthenticated, "this account has been deleted; register to use the server again")
	}
	now := s.options.Now().Unix()
	renamed, err := renameDevice(tx, identity, id, name, now)
	if err != nil || renamed {
		return err
	}
	n, err := countDevices(tx, identity)
	if err != nil {
		return err
	}
	if n >= MaxDevices {
		return rpc.Errorf(qpcpb.CodeDeviceLimit, "this identity has %d devices, the most that it may; revoke one first", n)
	}
	return insertDevice(tx, identity, row{id: id, name: name, registeredAt: now, lastSeenAt: now})
}

// ListDevices returns the devices of the caller (method 701).
func (s *Service) ListDevices(ctx context.Context, _ *qpcpb.ListDevicesRequest) (*qpcpb.ListDevicesResponse, error) {
	identity := rpc.PrincipalOf(ctx).Identity
	var devices []*qpcpb.Device
	err := s.options.DB.Read(ctx, func(tx *store.Tx) (err error) {
		devices, err = s.DetailsTx(tx, identity)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &qpcpb.ListDevicesResponse{Devices: devices}, nil
}

// RevokeDevice removes a device of the caller, with everything that the server
// keeps for it, and ends its sessions (method 702). The caller may revoke the
// device it speaks from; its connection ends after the answer.
func (s *Service) RevokeDevice(ctx context.Context, request *qpcpb.RevokeDeviceRequest) (*qpcpb.RevokeDeviceResponse, error) {
	id, err := parseID(request.DeviceId)
	if err != nil {
		return nil, err
	}
	if err := s.Revoke(ctx, rpc.PrincipalOf(ctx).Identity, id); err != nil {
		return nil, err
	}
	return &qpcpb.RevokeDeviceResponse{Success: true}, nil
}

func (s *Service) revokeTx(tx *store.Tx, identity rpc.IdentityKey, id rpc.DeviceID) error {
	found, err := deleteDevice(tx, identity, id)
	if err != nil {
		return err
	}
	if !found {
		return rpc.Errorf(qpcpb.CodeDeviceNotFound, "no device of yours has this id; list your devices")
	}
	for _, forget := range s.options.Forget {
		if err := forget(tx, identity, id); err != nil {
			return err
		}
	}
	return nil
}
