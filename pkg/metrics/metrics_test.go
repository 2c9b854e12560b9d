package metrics

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

var update = flag.Bool("update", false, "write docs/metrics.md")

func TestDocs(t *testing.T) {
	var b bytes.Buffer
	if err := WriteMarkdown(&b); err != nil {
		t.Fatal(err)
	}
	const page = "../../docs/metrics.md"
	if *update {
		if err := os.WriteFile(page, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(page); err != nil || !bytes.Equal(have, b.Bytes()) {
		t.Errorf("docs/metrics.md is not current (%v): go generate ./pkg/metrics", err)
	}
}

func full() Sources {
	n := func(v float64) func() float64 { return func() float64 { return v } }
	return Sources{
		InFlight: n(1), QueueDepth: n(2), QueueBytes: n(3), Connections: n(4), Sessions: n(5), StorageBytes: n(6), StorageFree: n(7), Commits: n(8),
		ReadOnly:          func() bool { return true },
		CertificateExpiry: func() time.Time { return time.Unix(9, 0) },
		Started:           time.Unix(10, 0),
	}
}

func text(t *testing.T, m *Metrics) string {
	t.Helper()
	var b bytes.Buffer
	if err := m.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func call(method qpcpb.MethodID, request, response proto.Message, code qpcpb.Code) rpc.Observation {
	return rpc.Observation{Method: qpcpb.LookupMethod(method), Request: request, Response: response, Code: code, Took: 2 * time.Millisecond}
}

func TestCounts(t *testing.T) {
	m := New(full())
	accepted, refused := &qpcpb.EnqueueResult{}, &qpcpb.EnqueueResult{Status: uint32(qpcpb.StatusNotFound)}
	for _, o := range []rpc.Observation{
		call(qpcpb.MethodEnqueue, &qpcpb.EnqueueRequest{Payload: make([]byte, 10)}, &qpcpb.EnqueueResponse{}, qpcpb.CodeUnspecified),
		call(qpcpb.MethodEnqueue, &qpcpb.EnqueueRequest{Payload: make([]byte, 10)}, nil, qpcpb.CodeRateLimited),
		call(qpcpb.MethodBatchEnqueue, &qpcpb.BatchEnqueueRequest{Payload: make([]byte, 100)}, &qpcpb.BatchEnqueueResponse{Results: []*qpcpb.EnqueueResult{accepted, refused, accepted}}, qpcpb.CodeUnspecified),
		call(qpcpb.MethodBatchEnqueue, &qpcpb.BatchEnqueueRequest{Payloads: [][]byte{make([]byte, 1000), make([]byte, 5)}}, &qpcpb.BatchEnqueueResponse{Results: []*qpcpb.EnqueueResult{accepted, refused}}, qpcpb.CodeUnspecified),
		call(qpcpb.MethodFetch, &qpcpb.FetchRequest{}, &qpcpb.FetchResponse{}, qpcpb.CodeUnspecified),
		call(qpcpb.MethodFetchWait, &qpcpb.FetchWaitRequest{}, &qpcpb.FetchWaitResponse{}, qpcpb.CodeUnspecified),
		call(qpcpb.MethodUploadKeyPackage, &qpcpb.UploadKeyPackageRequest{}, &qpcpb.UploadKeyPackageResponse{}, qpcpb.CodeUnspecified),
		call(qpcpb.MethodOpaqueLoginFinish, &qpcpb.OpaqueLoginFinishRequest{}, &qpcpb.OpaqueLoginFinishResponse{}, qpcpb.CodeUnspecified),
		call(qpcpb.MethodOpaqueLoginFinish, &qpcpb.OpaqueLoginFinishRequest{}, nil, qpcpb.CodeBadCredentials),
		call(qpcpb.MethodOpaqueLoginFinish, nil, nil, qpcpb.CodeMalformed), // nobody's credentials
		{Code: qpcpb.CodeUnimplemented}, // a number that is no method's
	} {
		m.Observe(o)
	}
	got := text(t, m)
	for _, line := range []string{
		"qpc_enqueue_total 4", "qpc_enqueue_bytes_total 1210", "qpc_fetch_total 1", "qpc_fetch_wait_total 1", "qpc_key_package_upload_total 1",
		"qpc_auth_login_success_total 1", "qpc_auth_login_failure_total 1", "qpc_rate_limit_hit_total 1",
		`qpc_errors_total{code="RATE_LIMITED"} 1`, `qpc_errors_total{code="UNIMPLEMENTED"} 1`,
		`qpc_call_duration_seconds_bucket{method="Enqueue",le="0.001"} 0`, `qpc_call_duration_seconds_bucket{method="Enqueue",le="0.003"} 2`,
		`qpc_call_duration_seconds_count{method="Enqueue"} 2`,
		"qpc_server_in_flight_rpcs 1", "qpc_delivery_queue_depth 2", "qpc_storage_read_only 1", "qpc_certificate_expiry_timestamp_seconds 9",
	} {
		if !strings.Contains(got, line+"\n") {
			t.Errorf("no line %q in\n%s", line, got)
		}
	}
}

// Each family stands under one help and one type, in one piece, and each row
// of the table is there.
func TestTextFormat(t *testing.T) {
	m := New(full())
	m.Observe(call(qpcpb.MethodHealth, &qpcpb.HealthRequest{}, &qpcpb.HealthResponse{}, qpcpb.CodeUnspecified))
	m.Observe(call(qpcpb.MethodPeek, &qpcpb.PeekRequest{}, nil, qpcpb.CodeInternal))
	got := text(t, m)
	for _, row := range Table() {
		if n := strings.Count(got, "# TYPE "+row.family()+" "+row.Kind+"\n"); n != 1 {
			t.Errorf("%s has %d types", row.Name, n)
		}
	}
	for line := range strings.Lines(got) {
		if _, known := familyOf(line); !strings.HasPrefix(line, "#") && !known {
			t.Errorf("a sample of no row: %s", line)
		}
	}
}
