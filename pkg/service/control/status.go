package control

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/store"
)

// GetStatus tells how the server is (method 1100). It works while the storage is
// read-only.
func (s *Service) GetStatus(ctx context.Context, _ *qpcpb.GetStatusRequest) (*qpcpb.GetStatusResponse, error) {
	o := s.options
	status := &qpcpb.GetStatusResponse{
		Status: o.Status(), Version: o.Version, UptimeSecs: uint64(max(0, o.Now().Sub(s.start)) / time.Second),
		ServerName: o.ServerName, Registration: o.Registration, Listeners: o.Listeners(),
		Connections: uint64(o.Connections()), Sessions: uint64(o.Presence.Connections()),
		CallsInFlight: uint64(max(0, o.Calls()-1)), // without this one
		MemoryBytes:   residentBytes(),
	}
	err := o.DB.Read(ctx, func(tx *store.Tx) error {
		n, err := o.Accounts.CountTx(tx)
		status.Accounts = uint64(n)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("counting accounts: %w", err)
	}
	if status.QueuedMessages, status.QueuedBytes, err = s.totals(ctx); err != nil {
		return nil, err
	}
	if status.Storage, err = s.storage(ctx); err != nil {
		return nil, err
	}
	leaf, selfSigned, warnings := o.Certificate()
	status.Certificate = &qpcpb.CertificateStatus{
		NotBefore: leaf.NotBefore.Unix(), NotAfter: leaf.NotAfter.Unix(), SelfSigned: selfSigned, Warnings: warnings,
		Names: append([]string{}, leaf.DNSNames...),
	}
	status.Certificate.Pin, status.Certificate.PinWords = pinOf(leaf)
	for _, ip := range leaf.IPAddresses {
		status.Certificate.Names = append(status.Certificate.Names, ip.String())
	}
	if last := o.LastError(); !last.At.IsZero() {
		status.LastError = &qpcpb.LastError{Message: last.Message, At: last.At.Unix()}
	}
	if o.Peers != nil {
		peers, err := o.Peers.ListPeers(ctx, &qpcpb.ListPeersRequest{})
		if err != nil {
			return nil, err
		}
		status.Peers = peers.Peers[:min(len(peers.Peers), maxPeers)]
	}
	return status, nil
}

// totals returns what waits for everybody, as counted at most totalsFor ago.
func (s *Service) totals(ctx context.Context) (messages, bytes uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock() // the next caller waits for this count instead of making its own
	now := s.options.Now()
	if s.counted.IsZero() || now.Sub(s.counted) >= totalsFor {
		if messages, bytes, err = s.options.Queues.Totals(ctx); err != nil {
			return 0, 0, err
		}
		s.counted, s.totalSize = now, totals{messages, bytes}
	}
	return s.totalSize.messages, s.totalSize.bytes, nil
}

func (s *Service) storage(ctx context.Context) (*qpcpb.StorageStatus, error) {
	stats := s.options.DB.Stats()
	storage := &qpcpb.StorageStatus{
		DataDir: s.options.DataDir, DatabaseBytes: uint64(stats.FileBytes + stats.WALBytes), FreeBytes: freeBytes(s.options.DataDir),
	}
	if s.options.ReadOnly != nil {
		storage.ReadOnly, storage.ReadOnlyReason = s.options.ReadOnly()
	}
	if s.options.Blobs != nil {
		var err error
		if storage.BlobBytes, storage.Blobs, err = s.options.Blobs.Usage(ctx); err != nil {
			return nil, fmt.Errorf("counting blobs: %w", err)
		}
	}
	return storage, nil
}

// freeBytes is what the file system of dir has left for this user, 0 when it
// does not say.
func freeBytes(dir string) uint64 {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0
	}
	return s.Bavail * uint64(s.Bsize)
}

// residentBytes is what the process holds of the machine's memory, 0 where the
// kernel does not say (proc(5), statm).
func residentBytes() uint64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
