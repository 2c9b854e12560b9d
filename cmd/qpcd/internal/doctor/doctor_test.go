package doctor

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quicprochat/qpcd/pkg/config"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/transport"
)

// healthy is a machine on which nothing is wrong and no server runs.
func healthy(t *testing.T) *patient {
	t.Helper()
	dir := t.TempDir()
	cfg := &config.Config{
		DataDir: dir, Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, ServerName: "router",
		TLSCert: filepath.Join(dir, "server-cert.der"), TLSKey: filepath.Join(dir, "server-key.der"), MaxConnections: 256,
	}
	if _, err := transport.LoadOrCreate(cfg.TLSCert, cfg.TLSKey, []string{"router"}, nil, nil); err != nil {
		t.Fatal(err)
	}
	return &patient{cfg: cfg, now: time.Now(), log: slog.New(slog.DiscardHandler)}
}

// Each illness is found, with what to do about it.
func TestIllnesses(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(t *testing.T, p *patient)
		check  func(context.Context, *patient) Finding
		level  Level
		detail string
	}{
		"no data directory":      {func(t *testing.T, p *patient) { p.cfg.DataDir = filepath.Join(p.cfg.DataDir, "none") }, checkDisk, Warning, "is not there"},
		"a file for a directory": {func(t *testing.T, p *patient) { p.cfg.DataDir = p.cfg.TLSKey }, checkDisk, Error, "is no directory"},
		"in memory":              {func(t *testing.T, p *patient) { p.cfg.DataDir = mounted(t, "size=64m") }, checkDisk, Error, "lies in memory"},
		"full disk": {func(t *testing.T, p *patient) {
			p.cfg.DataDir = mounted(t, "size=64k")
			os.WriteFile(filepath.Join(p.cfg.DataDir, "ballast"), make([]byte, 1<<20), 0o600)
		}, checkDisk, Error, "is full"},
		"read-only": {func(t *testing.T, p *patient) {
			p.cfg.DataDir = mounted(t, "size=1m")
			if err := unix.Mount("", p.cfg.DataDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Skipf("needs to remount: %v", err)
			}
		}, checkDisk, Error, "cannot be written"},
		"1970":        {func(t *testing.T, p *patient) { p.now = time.Unix(100, 0) }, checkClock, Warning, "it is 1 January 1970"},
		"an own port": {func(t *testing.T, p *patient) { p.cfg.Listen[0] = taken(t) }, checkPorts, Error, "cannot be listened on"},
		"not our address": {func(t *testing.T, p *patient) {
			p.cfg.Listen[0] = netip.MustParseAddrPort("192.0.2.1:5001")
		}, checkPorts, Error, "192.0.2.1"},
		"a lost key":  {func(t *testing.T, p *patient) { os.Remove(p.cfg.TLSKey) }, checkCertificate, Error, "no such file"},
		"an open key": {func(t *testing.T, p *patient) { os.Chmod(p.cfg.TLSKey, 0o640) }, checkCertificate, Error, "others can read the key"},
		"no pair":     {func(t *testing.T, p *patient) { os.WriteFile(p.cfg.TLSCert, []byte("x"), 0o600) }, checkCertificate, Error, ""},
		"a foreign file": {func(t *testing.T, p *patient) {
			os.WriteFile(filepath.Join(p.cfg.DataDir, "qpcd.db"), []byte("a letter to somebody else, of more than a hundred bytes, so that nobody takes it for an empty database file of ours"), 0o600)
		}, checkDatabase, Error, "not a database of this program"},
		"a deaf server":    {func(t *testing.T, p *patient) { p.asked, p.running = context.DeadlineExceeded, true }, checkServer, Error, "cannot be asked"},
		"nobody":           {func(t *testing.T, p *patient) { p.cfg.ControlSocket = "s" }, checkServer, Warning, "does not run"},
		"many connections": {func(t *testing.T, p *patient) { p.cfg.MaxConnections = 1 << 30 }, checkMemory, Warning, "max_connections"},
	} {
		t.Run(name, func(t *testing.T) {
			p := healthy(t)
			c.spoil(t, p)
			f := c.check(t.Context(), p)
			if f.Level != c.level || !strings.Contains(f.Detail, c.detail) || f.Advice == "" {
				t.Errorf("%+v, want %s and %q", f, c.level, c.detail)
			}
		})
	}
}

func mounted(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("needs to mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func taken(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// A healthy machine has nothing worse than a server that does not run, and
// looking leaves nothing behind.
func TestHealthy(t *testing.T) {
	p := healthy(t)
	for _, f := range examine(t.Context(), p) {
		if f.Level == Error || f.Level == Warning && f.Check != "server" && f.Check != "buffers" && f.Check != "memory" {
			t.Errorf("%+v", f)
		}
	}
	entries, err := os.ReadDir(p.cfg.DataDir)
	if err != nil || len(entries) != 2 {
		t.Errorf("looking left %v, %v", entries, err)
	}
}

func TestBuffers(t *testing.T) {
	for _, c := range []struct {
		receive, send int64
		level         Level
	}{{212992, 212992, Warning}, {8 << 20, 212992, Warning}, {4 << 20, 4 << 20, OK}, {8 << 20, 8 << 20, OK}} {
		if f := judgeBuffers(c.receive, c.send); f.Level != c.level || (f.Level == OK) != (f.Advice == "") {
			t.Errorf("%d and %d: %+v", c.receive, c.send, f)
		}
	}
}

func TestMemory(t *testing.T) {
	cfg := &config.Config{MaxConnections: 256}
	if f := judgeMemory(48<<20, cfg, false); f.Level != OK {
		t.Errorf("a router of 64 MB: %+v", f)
	}
	f := judgeMemory(20<<20, cfg, false)
	if f.Level != Warning || !strings.Contains(f.Advice, "max_connections to 64 ") {
		t.Errorf("too little: %+v", f)
	}
	if f := judgeMemory(20<<20, cfg, true); f.Level != OK {
		t.Errorf("what runs has its memory already: %+v", f)
	}
	if f := judgeMemory(1<<20, cfg, false); !strings.Contains(f.Advice, "max_connections to 1 ") {
		t.Errorf("nearly none: %+v", f)
	}
}

// What the server tells stands beside what was looked at, once, and a finding
// that no check knows at the end.
func TestToldByTheServer(t *testing.T) {
	p := healthy(t)
	p.running = true
	p.told = []*qpcpb.Finding{{Check: "disk", Level: "error", Detail: "read-only", Advice: "make room"}, {Check: "new", Level: "ok", Detail: "fine"}}
	all := examine(t.Context(), p)
	var told []string
	for _, f := range all {
		if f.Detail == "read-only" || f.Detail == "fine" {
			told = append(told, f.Check)
		}
	}
	if len(told) != 2 || told[0] != "disk" || all[len(all)-1].Check != "new" {
		t.Errorf("%+v", all)
	}
}
