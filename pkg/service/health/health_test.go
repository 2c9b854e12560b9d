package health_test

import (
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/service/health"
	"github.com/quicprochat/qpcd/pkg/service/internal/servicetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnyoneMayAsk(t *testing.T) {
	h := servicetest.New(t)
	var status atomic.Value
	status.Store(health.StatusOK)
	qpcpb.RegisterHealthServer(h.Server, health.New(health.Options{
		Status:  func() string { return status.Load().(string) },
		Version: "1.2.3",
		Now:     h.Service.Now,
	}))
	h.Open()
	stranger := qpcpb.NewHealthClient(h.Stranger())

	for _, step := range []struct {
		status  string
		advance time.Duration
		uptime  uint64
	}{
		{health.StatusOK, 0, 0},
		{health.StatusOK, 61900 * time.Millisecond, 61},
		{health.StatusReadOnly, 100 * time.Millisecond, 62},
		{health.StatusDraining, -time.Hour, 0}, // never below zero
	} {
		status.Store(step.status)
		h.Service.Advance(step.advance)
		got, err := stranger.Health(servicetest.Within(t), &qpcpb.HealthRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got.Status != step.status || got.Version != "1.2.3" || got.UptimeSecs != step.uptime {
			t.Errorf("got %v, want status %q, version 1.2.3, uptime %d", got, step.status, step.uptime)
		}
	}
}

func TestStatusIsOKUnlessToldOtherwise(t *testing.T) {
	s := health.New(health.Options{Now: time.Now})
	got, err := s.Health(t.Context(), nil)
	if err != nil || got.Status != health.StatusOK {
		t.Errorf("got %v, %v", got, err)
	}
}
