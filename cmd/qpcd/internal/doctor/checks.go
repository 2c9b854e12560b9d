package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/machine"
	"github.com/quicprochat/qpcd/pkg/backup"
	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/server"
	"github.com/quicprochat/qpcd/pkg/store"
	"github.com/quicprochat/qpcd/pkg/transport"
)

const (
	// lowDisk and noDisk are the free bytes from which on the disk is a warning
	// and an error: below the latter the server goes read-only.
	lowDisk = 16 << 20
	noDisk  = 2 << 20
	// slowSync is a sync of the disk that makes chatting slow: a message waits
	// for one.
	slowSync = 500 * time.Millisecond
	// wantedBuffer is what quic-go asks the kernel for, for each direction of a
	// socket, in bytes; lowBuffer is where a few clients that send at once lose
	// packets.
	wantedBuffer = 7 << 20
	lowBuffer    = 512 << 10
	// connectionMemory is what an idle connection takes, and a busy one on
	// average, in bytes; processMemory is the server without any.
	connectionMemory = 64 << 10
	processMemory    = 16 << 20
	// certificateSoon is how long before its end a certificate is a warning.
	certificateSoon = 30 * 24 * time.Hour
	// firstRelease is before any program of ours was built. A clock before it is
	// wrong whatever the build says.
	firstRelease = 1_735_689_600 // 1 January 2025
	// probeFile is written and removed in the data directory.
	probeFile = ".qpcd-doctor-*"
)

// forgetful are file systems that keep nothing over a restart, by their magic
// numbers (statfs(2)).
func forgetful() map[int64]string {
	return map[int64]string{
		unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs",
	}
}

// remote are file systems on other machines, whose locks and syncs cannot be
// relied on.
func remote() map[int64]string {
	return map[int64]string{
		unix.NFS_SUPER_MAGIC: "NFS", 0xff534d42: "CIFS", 0xfe534d42: "SMB2", 0x65735546: "FUSE", 0x01021997: "9p",
	}
}

func checkDisk(_ context.Context, p *patient) Finding {
	dir := p.cfg.DataDir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bad(Warning, "start the server, which makes it, or set data_dir", "%s is not there", dir)
	case err != nil:
		return bad(Error, "check the modes of the directories above it, and data_dir", "%s cannot be looked at: %v", dir, err)
	case !info.IsDir():
		return bad(Error, "set data_dir to a directory", "%s is no directory", dir)
	}
	took, err := trySync(dir)
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return bad(Error, "make room; the server writes again by itself", "%s is full", dir)
	}
	if err != nil {
		return bad(Error, "see the kernel's log (dmesg) for a failing disk, and check owner and mode of the directory", "%s cannot be written: %v", dir, err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return bad(Error, "see the kernel's log (dmesg)", "the file system of %s cannot be looked at: %v", dir, err)
	}
	kind := int64(s.Type) & 0xffffffff // 32-bit systems give it a sign
	free := store.FreeBytes(dir)
	state := fmt.Sprintf("%s has %d MiB free, a sync takes %v", dir, free>>20, took.Round(100*time.Microsecond))
	switch {
	case forgetful()[kind] != "":
		return bad(Error, "move data_dir to flash or a disk: all accounts are lost at the next restart", "%s lies in memory (%s)", dir, forgetful()[kind])
	case remote()[kind] != "":
		return bad(Warning, "move data_dir to a disk of this machine: a database wants locks and syncs that work", "%s lies on %s", dir, remote()[kind])
	case free < noDisk:
		return bad(Error, "make room: the server stores nothing below about 1 MiB", "%s", state)
	case free < lowDisk:
		return bad(Warning, "make room soon", "%s", state)
	case took > slowSync:
		return bad(Warning, "a message waits for a sync: put data_dir on a faster disk, or look for what keeps this one busy", "%s", state)
	}
	return ok("%s", state)
}

// trySync writes a small file, syncs and removes it.
func trySync(dir string) (took time.Duration, err error) {
	f, err := os.CreateTemp(dir, probeFile)
	if err != nil {
		return 0, err
	}
	defer os.Remove(f.Name())
	start := time.Now()
	_, err = f.Write(make([]byte, 4096))
	if err == nil {
		err = f.Sync()
	}
	took = time.Since(start)
	return took, errors.Join(err, f.Close())
}

func checkClock(_ context.Context, p *patient) Finding {
	built := buildTime()
	advice := "set the clock (ntpd, or `date -s`): the server works without, but shows wrong times, and public certificates do not verify"
	switch {
	case p.now.Unix() < firstRelease:
		return bad(Warning, advice, "it is %s, says the clock", p.now.UTC().Format("2 January 2006, 15:04"))
	case p.now.Before(built):
		return bad(Warning, advice, "it is %s, says the clock, and this program was built later, on %s", p.now.UTC().Format("2 January 2006"), built.Format("2 January 2006"))
	}
	return ok("it is %s UTC", p.now.UTC().Format("2 January 2006, 15:04"))
}

// buildTime is the time of the commit that this program was built from, or the
// zero time.
func buildTime() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			t, _ := time.Parse(time.RFC3339, s.Value) // the zero time if it is none
			return t
		}
	}
	return time.Time{}
}

func checkPorts(_ context.Context, p *patient) Finding {
	if p.running {
		return Finding{} // the server tells
	}
	var free []string
	for _, addr := range p.cfg.Listen {
		if err := tryListen(addr); err != nil {
			advice := "choose another address or port with listen"
			switch {
			case errors.Is(err, syscall.EADDRINUSE):
				advice = "another program has it (`ss -ulpn`): end that one, or choose another port with listen"
			case errors.Is(err, syscall.EACCES):
				advice = "ports below 1024 are for root: choose a higher one with listen"
			case errors.Is(err, syscall.EADDRNOTAVAIL):
				advice = "this machine does not have that address: listen on one that it has, or on [::]"
			}
			return bad(Error, advice, "UDP %s cannot be listened on: %v", addr, err)
		}
		free = append(free, addr.String())
	}
	return ok("UDP %s is free", strings.Join(free, ", "))
}

func tryListen(addr netip.AddrPort) error {
	network := "udp6"
	switch {
	case addr.Addr().Is4():
		network = "udp4"
	case addr.Addr().IsUnspecified():
		network = "udp"
	}
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return err
	}
	return conn.Close()
}

func checkBuffers(_ context.Context, _ *patient) Finding {
	receive, err := machine.Number("/proc/sys/net/core/rmem_max")
	if err != nil {
		return bad(Warning, "", "the kernel does not tell its limits: %v", err)
	}
	send, err := machine.Number("/proc/sys/net/core/wmem_max")
	if err != nil {
		return bad(Warning, "", "the kernel does not tell its limits: %v", err)
	}
	return judgeBuffers(receive, send)
}

// judgeBuffers judges what the kernel grants a socket to receive and to send.
func judgeBuffers(receive, send int64) Finding {
	detail := fmt.Sprintf("a socket may have %d KiB to receive and %d KiB to send", receive>>10, send>>10)
	switch low := min(receive, send); {
	case low < lowBuffer:
		return bad(Warning, fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d (and in /etc/sysctl.conf): with less, packets are lost when several clients send at once", wantedBuffer, wantedBuffer), "%s", detail)
	case low < wantedBuffer:
		return ok("%s, enough for a home; %d KiB is what QUIC asks for", detail, wantedBuffer>>10)
	}
	return ok("%s", detail)
}

func checkCertificate(_ context.Context, p *patient) Finding {
	certFile, keyFile := p.cfg.TLSCert, p.cfg.TLSKey
	_, certErr := os.Stat(certFile)
	info, keyErr := os.Stat(keyFile)
	switch {
	case errors.Is(certErr, fs.ErrNotExist) && errors.Is(keyErr, fs.ErrNotExist):
		return ok("there is none yet; the first start makes one")
	case certErr != nil:
		return bad(Error, "put it there, or set tls_cert", "%v", certErr)
	case keyErr != nil:
		return bad(Error, "put it there, or set tls_key", "%v", keyErr)
	}
	certs, err := transport.LoadOrCreate(certFile, keyFile, nil, func() time.Time { return p.now }, nil)
	if err != nil {
		return bad(Error, "put a matching pair there, or remove both for a new one, which every client must then trust anew", "%v", err)
	}
	leaf := certs.Leaf()
	detail := fmt.Sprintf("pin %s, for %s", certs.Pin().String()[:16], strings.Join(names(certs), ", "))
	switch left := leaf.NotAfter.Sub(p.now); {
	case info.Mode().Perm()&0o077 != 0:
		return bad(Error, "chmod 600 "+keyFile, "others can read the key: its mode is %#o", info.Mode().Perm())
	case left < 0:
		return bad(Error, "renew it; clients that verify dates refuse it", "it ended on %s", leaf.NotAfter.Format("2 January 2006"))
	case left < certificateSoon:
		return bad(Warning, "renew it, or see why that does not happen by itself", "it ends on %s", leaf.NotAfter.Format("2 January 2006"))
	case leaf.VerifyHostname(p.cfg.ServerName) != nil && !certs.SelfSigned():
		return bad(Warning, "get one for server_name, or set server_name to one of its names", "it is for %s and not for %s", strings.Join(names(certs), ", "), p.cfg.ServerName)
	}
	return ok("%s", detail)
}

// names are the first of a certificate's names.
func names(certs *transport.CertificateStore) []string {
	all := certs.Leaf().DNSNames
	for _, ip := range certs.Leaf().IPAddresses {
		all = append(all, ip.String())
	}
	const most = 4
	if len(all) > most {
		all = append(all[:most:most], "…")
	}
	return all
}

func checkDatabase(ctx context.Context, p *patient) Finding {
	if p.running {
		return Finding{} // the server tells
	}
	found, err := server.InspectDatabase(ctx, p.cfg, p.log)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ok("there is none yet; the first start makes one")
	case errors.Is(err, store.ErrLocked):
		return bad(Error, "if that is qpcd, name its settings as it has them (--config, --control-socket); else end the other program", "%v", err)
	case errors.Is(err, store.ErrNewer):
		return bad(Error, "update qpcd", "%v", err)
	case errors.Is(err, store.ErrForeign):
		return bad(Error, "choose another data_dir, or move that file away", "%v", err)
	case errors.Is(err, store.ErrNotWritable):
		return bad(Error, "check owner and mode of the file and its directory", "%v", err)
	case err != nil:
		return bad(Error, "restore a backup, if the disk is well", "%v", err)
	case len(found.Findings) > 0:
		return bad(Error, "restore a backup", "it is damaged: %s", strings.Join(found.Findings, "; "))
	case found.Schema < found.Newest:
		return ok("%d KiB, whole; the next start brings it from schema %d to %d", found.FileBytes>>10, found.Schema, found.Newest)
	}
	return ok("%d KiB, whole", found.FileBytes>>10)
}

func checkMemory(_ context.Context, p *patient) Finding {
	available := machine.MemAvailable()
	if available == 0 {
		return bad(Warning, "", "the kernel does not tell how much is available")
	}
	return judgeMemory(available, p.cfg, p.running)
}

// judgeMemory judges whether all connections that are allowed fit.
func judgeMemory(available uint64, cfg *config.Config, running bool) Finding {
	need := uint64(cfg.MaxConnections) * connectionMemory
	if !running {
		need += processMemory
	}
	if available < need {
		fits := (int64(available) - int64(need) + int64(cfg.MaxConnections)*connectionMemory) / connectionMemory
		return bad(Warning, fmt.Sprintf("set max_connections to %d or less, or free some memory", max(fits, 1)),
			"%d MiB are available, and max_connections %d may take %d MiB", available>>20, cfg.MaxConnections, need>>20)
	}
	return ok("%d MiB are available; max_connections %d may take %d MiB", available>>20, cfg.MaxConnections, need>>20)
}

func checkLeftovers(_ context.Context, p *patient) Finding {
	left, err := backup.Leftovers(p.cfg.DataDir)
	if err != nil || len(left) == 0 {
		return Finding{}
	}
	var bytes int64
	for _, dir := range left {
		_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
			if info, err2 := e.Info(); err == nil && err2 == nil && info.Mode().IsRegular() {
				bytes += info.Size()
			}
			return nil
		})
	}
	return bad(OK, "remove them when you no longer need them: "+strings.Join(left, ", "), "%d states from before a restore take %d MiB", len(left), bytes>>20)
}
