package server

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

func TestMetricsPage(t *testing.T) {
	t.Parallel()
	h := open(t, t.TempDir(), func(c *config.Config) {
		c.MetricsListen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0"), netip.MustParseAddrPort("[::1]:0")}
	})
	c := h.dial("")
	if _, err := qpcpb.NewHealthClient(c).Health(within(t), &qpcpb.HealthRequest{}); err != nil {
		t.Fatal(err)
	}
	addrs := h.s.page.addrs()
	if len(addrs) != 2 {
		t.Fatalf("listening on %v", addrs)
	}
	get := func(method, path string) (int, string) {
		t.Helper()
		request, err := http.NewRequestWithContext(within(t), method, "http://"+addrs[0].String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Close = true
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(body)
	}
	status, text := get(http.MethodGet, "/metrics")
	if status != http.StatusOK {
		t.Fatalf("status %d", status)
	}
	for _, part := range []string{
		`qpc_call_duration_seconds_count{method="Health"} 1`, "qpc_connections 1\n", "qpc_storage_commits_total ", "qpc_delivery_queue_depth 0\n",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
	for _, other := range [][2]string{{http.MethodPost, "/metrics"}, {http.MethodGet, "/"}, {http.MethodGet, "/debug/pprof/"}} {
		if status, _ := get(other[0], other[1]); status < 400 {
			t.Errorf("%v answers %d", other, status)
		}
	}
}
