// Package metrics counts what the server does, for Prometheus and its like.
// Every metric is a row of one table ([Table]), which docs/metrics.md is made
// of; nobody's name, key or address is in any of them.
//
// A Metrics is fed by the dispatcher, which tells it of every answered call, and
// asks for the rest when it is read. The names are those of quicprochat's own
// server, under the prefix qpc_, where it has them.
package metrics

//go:generate go test . -run ^TestDocs$ -update

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/VictoriaMetrics/metrics"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
)

// Row is one metric.
type Row struct {
	// Name is the metric's, with its prefix; labels in braces.
	Name string
	// Kind is counter, gauge or histogram.
	Kind string
	// Doc says what it counts, in what unit.
	Doc string
}

// The names, in the order of the table.
const (
	enqueueTotal      = "qpc_enqueue_total"
	enqueueBytes      = "qpc_enqueue_bytes_total"
	fetchTotal        = "qpc_fetch_total"
	fetchWaitTotal    = "qpc_fetch_wait_total"
	uploadTotal       = "qpc_key_package_upload_total"
	loginSuccess      = "qpc_auth_login_success_total"
	loginFailure      = "qpc_auth_login_failure_total"
	rateLimitHit      = "qpc_rate_limit_hit_total"
	errorTotal        = "qpc_errors_total"
	callSeconds       = "qpc_call_duration_seconds"
	inFlight          = "qpc_server_in_flight_rpcs"
	queueDepth        = "qpc_delivery_queue_depth"
	queueBytes        = "qpc_delivery_queue_bytes"
	connections       = "qpc_connections"
	sessions          = "qpc_sessions"
	storageBytes      = "qpc_storage_bytes"
	storageFree       = "qpc_storage_free_bytes"
	storageReadOnly   = "qpc_storage_read_only"
	commitTotal       = "qpc_storage_commits_total"
	certificateExpiry = "qpc_certificate_expiry_timestamp_seconds"
	startTime         = "qpc_start_timestamp_seconds"
)

// Table returns every metric.
func Table() []Row {
	return []Row{
		{enqueueTotal, "counter", "Messages accepted for a recipient; a batch counts once for each. Repeated ones count."},
		{enqueueBytes, "counter", "Bytes of their payloads."},
		{fetchTotal, "counter", "Answered Fetch calls."},
		{fetchWaitTotal, "counter", "Answered FetchWait calls."},
		{uploadTotal, "counter", "Key packages stored."},
		{loginSuccess, "counter", "Logins that succeeded."},
		{loginFailure, "counter", "Logins refused for wrong credentials or a ban."},
		{rateLimitHit, "counter", "Calls answered with RATE_LIMITED."},
		{errorTotal + "{code}", "counter", "Calls answered with an error, by its code."},
		{callSeconds + "{method}", "histogram", "Time from the header of a request to the end of its answer, by method."},
		{inFlight, "gauge", "Calls under way."},
		{queueDepth, "gauge", "Messages that wait for their recipients."},
		{queueBytes, "gauge", "Bytes of their payloads."},
		{connections, "gauge", "Open connections of clients."},
		{sessions, "gauge", "Of them, those that are logged in."},
		{storageBytes, "gauge", "Size of the database with its write-ahead log."},
		{storageFree, "gauge", "Free space on its file system."},
		{storageReadOnly, "gauge", "1 while the storage takes no writes."},
		{commitTotal, "counter", "Commits of the database, each a sync of the disk."},
		{certificateExpiry, "gauge", "When the certificate expires, Unix seconds."},
		{startTime, "gauge", "When the server started, Unix seconds."},
	}
}

// buckets are the upper bounds of the histograms, in seconds: from what memory
// answers in to the deadline of a call, each about three times the one before.
// Fewer buckets are less to keep for each method, on a router.
func buckets() []float64 {
	return []float64{0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30}
}

// Sources are asked when the metrics are read. Each must be quick.
type Sources struct {
	InFlight, QueueDepth, QueueBytes, Connections, Sessions, StorageBytes, StorageFree, Commits func() float64
	ReadOnly                                                                                    func() bool
	CertificateExpiry                                                                           func() time.Time
	Started                                                                                     time.Time
}

// Metrics holds the counts. It is safe for concurrent use.
type Metrics struct {
	set *metrics.Set
	// durations has the histogram of each method that was called, by
	// qpcpb.MethodID: finding it in the set costs a name made for every call.
	durations sync.Map

	enqueued, enqueuedBytes, fetched, fetchWaited, uploaded, loggedIn, loginsRefused, rateLimited *metrics.Counter
}

// New returns metrics that count from zero. A source that is nil is left out.
func New(s Sources) *Metrics {
	set := metrics.NewSet()
	m := &Metrics{
		set:      set,
		enqueued: set.NewCounter(enqueueTotal), enqueuedBytes: set.NewCounter(enqueueBytes),
		fetched: set.NewCounter(fetchTotal), fetchWaited: set.NewCounter(fetchWaitTotal),
		uploaded: set.NewCounter(uploadTotal),
		loggedIn: set.NewCounter(loginSuccess), loginsRefused: set.NewCounter(loginFailure),
		rateLimited: set.NewCounter(rateLimitHit),
	}
	for name, source := range map[string]func() float64{
		inFlight: s.InFlight, queueDepth: s.QueueDepth, queueBytes: s.QueueBytes, connections: s.Connections,
		sessions: s.Sessions, storageBytes: s.StorageBytes, storageFree: s.StorageFree, commitTotal: s.Commits,
	} {
		if source != nil {
			set.NewGauge(name, source)
		}
	}
	if s.ReadOnly != nil {
		set.NewGauge(storageReadOnly, func() float64 {
			if s.ReadOnly() {
				return 1
			}
			return 0
		})
	}
	if s.CertificateExpiry != nil {
		set.NewGauge(certificateExpiry, func() float64 { return float64(s.CertificateExpiry().Unix()) })
	}
	set.NewGauge(startTime, func() float64 { return float64(s.Started.Unix()) })
	return m
}

// Observe counts an answered call. It is made for rpc.ServerOptions.Observe.
func (m *Metrics) Observe(o rpc.Observation) {
	if o.Method != nil {
		m.duration(o.Method).Update(o.Took.Seconds())
	}
	if o.Code != qpcpb.CodeUnspecified {
		m.failed(o)
		return
	}
	switch response := o.Response.(type) {
	case *qpcpb.EnqueueResponse:
		m.enqueued.Inc()
		m.enqueuedBytes.Add(len(o.Request.(*qpcpb.EnqueueRequest).Payload))
	case *qpcpb.BatchEnqueueResponse:
		m.batch(o.Request.(*qpcpb.BatchEnqueueRequest), response)
	case *qpcpb.FetchResponse:
		m.fetched.Inc()
	case *qpcpb.FetchWaitResponse:
		m.fetchWaited.Inc()
	case *qpcpb.UploadKeyPackageResponse:
		m.uploaded.Inc()
	case *qpcpb.OpaqueLoginFinishResponse:
		m.loggedIn.Inc()
	}
}

// duration returns the histogram of a method: as many as the method table has.
func (m *Metrics) duration(method *qpcpb.MethodInfo) *metrics.PrometheusHistogram {
	if h, ok := m.durations.Load(method.ID); ok {
		return h.(*metrics.PrometheusHistogram)
	}
	h := m.set.GetOrCreatePrometheusHistogramExt(callSeconds+`{method="`+method.Name+`"}`, buckets())
	m.durations.Store(method.ID, h)
	return h
}

func (m *Metrics) failed(o rpc.Observation) {
	m.set.GetOrCreateCounter(errorTotal + `{code="` + o.Code.Word() + `"}`).Inc()
	switch {
	case o.Code == qpcpb.CodeRateLimited:
		m.rateLimited.Inc()
	case o.Method == nil || o.Method.ID != qpcpb.MethodOpaqueLoginFinish:
	case o.Code == qpcpb.CodeBadCredentials, o.Code == qpcpb.CodeUserBanned, o.Code == qpcpb.CodeKeyRevoked:
		m.loginsRefused.Inc()
	}
}

func (m *Metrics) batch(request *qpcpb.BatchEnqueueRequest, response *qpcpb.BatchEnqueueResponse) {
	for i, result := range response.Results {
		if result.Status != uint32(qpcpb.StatusOK) {
			continue
		}
		m.enqueued.Inc()
		if len(request.Payloads) > i {
			m.enqueuedBytes.Add(len(request.Payloads[i]))
		} else {
			m.enqueuedBytes.Add(len(request.Payload))
		}
	}
}

// WriteText writes the metrics in the text format of Prometheus, each family
// under its help and type.
func (m *Metrics) WriteText(w io.Writer) error {
	var samples bytes.Buffer
	m.set.WritePrometheus(&samples)
	var b strings.Builder
	family := ""
	for line := range strings.Lines(samples.String()) {
		row, known := familyOf(line)
		if name := row.family(); known && name != family {
			family = name
			fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, row.Doc, name, row.Kind)
		}
		b.WriteString(line)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// family is the row's name without labels.
func (r Row) family() string {
	name, _, _ := strings.Cut(r.Name, "{")
	return name
}

// familyOf returns the row that a sample belongs to.
func familyOf(sample string) (Row, bool) {
	end := strings.IndexAny(sample, "{ ")
	if end < 0 {
		return Row{}, false
	}
	name := sample[:end]
	for _, row := range Table() {
		if row.family() == name {
			return row, true
		}
		if suffix, ok := strings.CutPrefix(name, row.family()); ok && row.Kind == "histogram" && (suffix == "_bucket" || suffix == "_sum" || suffix == "_count") {
			return row, true
		}
	}
	return Row{}, false
}

// WriteMarkdown writes docs/metrics.md.
func WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("<!-- Generated from the table in pkg/metrics: go generate ./pkg/metrics -->\n\n# Metrics\n\n" +
		"Set `metrics_listen` (see [configuration](configuration.md#metrics_listen)) and read them\nas Prometheus text from `http://ADDRESS/metrics`. Nobody's name, key or address\nis in any of them.\n\n" +
		"| metric | kind | what it tells |\n|---|---|---|\n")
	for _, row := range Table() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", row.Name, row.Kind, row.Doc)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
