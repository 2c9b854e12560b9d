package health

import (
	"context"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

var _ qpcpb.HealthServer = (*Service)(nil)

// Health tells how the server is.
func (s *Service) Health(context.Context, *qpcpb.HealthRequest) (*qpcpb.HealthResponse, error) {
	// A clock without monotonic readings may go back.
	uptime := max(0, s.options.Now().Sub(s.start))
	return &qpcpb.HealthResponse{
		Status:     s.options.Status(),
		Version:    s.options.Version,
		UptimeSecs: uint64(uptime / time.Second),
	}, nil
}
