package device

import (
	"context"
	"fmt"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// DetailsTx returns the devices of an identity as ListDevices shows them.
func (s *Service) DetailsTx(tx *store.Tx, identity rpc.IdentityKey) ([]*qpcpb.Device, error) {
	devices, err := readDevices(tx, identity)
	if err != nil {
		return nil, err
	}
	details := make([]*qpcpb.Device, len(devices))
	for i, d := range devices {
		details[i] = &qpcpb.Device{
			DeviceId:     d.id[:],
			DeviceName:   d.name,
			RegisteredAt: wireTime(d.registeredAt),
			LastSeen:     wireTime(d.lastSeenAt),
		}
	}
	return details, nil
}

// Revoke removes a device of an identity, with everything that the server keeps
// for it, and ends its sessions. The error is DEVICE_NOT_FOUND when there is no
// such device.
func (s *Service) Revoke(ctx context.Context, identity rpc.IdentityKey, id rpc.DeviceID) error {
	err := s.options.DB.Write(ctx, func(tx *store.Tx) error { return s.revokeTx(tx, identity, id) })
	if err != nil {
		return fmt.Errorf("revoking a device: %w", err)
	}
	// Here and not in AfterCommit: the caller's own connection is closed after
	// the answer, which only the goroutine of the call can arrange.
	s.options.Sessions.EndSessions(ctx, identity, func(p *rpc.Principal) bool {
		return p.HasDevice && p.Device == id
	}, transport.CloseSessionRevoked, "this device has been revoked")
	return nil
}
