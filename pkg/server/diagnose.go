package server

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
)

// The levels of a finding.
const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelError   = "error"
)

// queuedWrites is how many writes may wait before the disk is called slow: a
// commit takes hundreds.
const queuedWrites = 512

// Diagnose tells what only the running server knows (method 1101). What anybody
// can see of the machine, `qpcd doctor` looks at itself.
func (s *Server) Diagnose(ctx context.Context, _ *qpcpb.DiagnoseRequest) (*qpcpb.DiagnoseResponse, error) {
	database, err := s.diagnoseDatabase(ctx)
	if err != nil {
		return nil, err
	}
	return &qpcpb.DiagnoseResponse{Findings: []*qpcpb.Finding{
		s.diagnoseDisk(), s.diagnosePorts(), s.diagnoseCertificate(), database, s.diagnoseConnections(),
	}}, nil
}

func (s *Server) diagnoseDisk() *qpcpb.Finding {
	f := &qpcpb.Finding{Check: "disk", Level: levelOK, Detail: fmt.Sprintf("the server writes to %s", wirePath(s.config.DataDir))}
	if readOnly, reason := s.db.ReadOnly(); readOnly {
		f.Level, f.Detail = levelError, "the server stores nothing: "+reason
		f.Advice = "make room on the disk of data_dir, or replace it; the server writes again by itself"
	}
	return f
}

func (s *Server) diagnosePorts() *qpcpb.Finding {
	var addrs []string
	for _, a := range s.listener.Addrs() {
		addrs = append(addrs, a.String())
	}
	return &qpcpb.Finding{Check: "ports", Level: levelOK, Detail: "the server listens on UDP " + strings.Join(addrs, ", ")}
}

func (s *Server) diagnoseCertificate() *qpcpb.Finding {
	f := &qpcpb.Finding{Check: "certificate", Level: levelOK, Detail: "in use with pin " + s.certs.Pin().String()[:16]}
	if warnings := s.certs.Warnings(); len(warnings) > 0 {
		f.Level, f.Detail, f.Advice = levelWarning, strings.Join(warnings, "; "), "renew the certificate, see docs/running.md"
	}
	return f
}

func (s *Server) diagnoseDatabase(ctx context.Context) (*qpcpb.Finding, error) {
	start := time.Now()
	findings, err := s.db.Check(ctx)
	if err != nil {
		return nil, err
	}
	stats := s.db.Stats()
	f := &qpcpb.Finding{Check: "database", Level: levelOK}
	f.Detail = fmt.Sprintf("%d KiB, log %d KiB, checked in %v without a finding; %d commits since the start, %d failed",
		stats.FileBytes>>10, stats.WALBytes>>10, time.Since(start).Round(time.Millisecond), stats.Commits, stats.FailedCommits)
	switch {
	case len(findings) > 0:
		f.Level, f.Detail = levelError, "it is damaged: "+strings.ToValidUTF8(strings.Join(findings, "; "), "?")
		f.Advice = "stop the server and restore a backup"
	case stats.Queued > queuedWrites:
		f.Level, f.Detail = levelWarning, fmt.Sprintf("%d writes wait for the disk", stats.Queued)
		f.Advice = "put data_dir on a faster disk"
	}
	return f, nil
}

func (s *Server) diagnoseConnections() *qpcpb.Finding {
	n, most := s.listener.Stats().Connections, s.config.MaxConnections
	f := &qpcpb.Finding{Check: "connections", Level: levelOK, Detail: fmt.Sprintf("%d of at most %d, process %d", n, most, os.Getpid())}
	if n*10 >= most*9 {
		f.Level, f.Advice = levelWarning, "nearly all are taken: raise max_connections, memory allowing"
	}
	return f
}
