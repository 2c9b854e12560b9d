package tlog_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/pkg/tlog"
)

// vectors is testdata/rfc6962.json.
type vectors struct {
	Entries, Roots []string
	Inclusion      []struct {
		Index, Size uint64
		Hashes      []string
	}
	Consistency []struct {
		Old, New uint64
		Hashes   []string
	}
}

func decode(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func decodeAll(t testing.TB, all []string) (hashes [][]byte) {
	for _, s := range all {
		hashes = append(hashes, decode(t, s))
	}
	return hashes
}

func load(t testing.TB) (v vectors, leaves []tlog.Hash, heads []tlog.Checkpoint) {
	t.Helper()
	data, err := os.ReadFile("testdata/rfc6962.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	for _, entry := range v.Entries {
		leaves = append(leaves, sha256.Sum256(append([]byte{0}, decode(t, entry)...)))
	}
	for size, root := range v.Roots {
		heads = append(heads, tlog.Checkpoint{Size: uint64(size), Root: tlog.Hash(decode(t, root))})
	}
	return v, leaves, heads
}

// Every published proof verifies, and none of its neighbours does.
func TestRFC6962Inclusion(t *testing.T) {
	v, leaves, heads := load(t)
	if heads[0].Root != tlog.EmptyRoot() {
		t.Error("the empty root differs")
	}
	for _, p := range v.Inclusion {
		hashes, leaf, head := decodeAll(t, p.Hashes), leaves[p.Index], heads[p.Size]
		if err := tlog.VerifyInclusion(head, p.Index, leaf, hashes); err != nil {
			t.Errorf("leaf %d of %d: %v", p.Index, p.Size, err)
		}
		other := leaf
		other[31] ^= 1
		bad := map[string]error{
			"another place":      tlog.VerifyInclusion(head, p.Index+1, leaf, hashes),
			"beyond the tree":    tlog.VerifyInclusion(head, p.Size, leaf, hashes),
			"the largest number": tlog.VerifyInclusion(head, 1<<64-1, leaf, hashes),
			"another leaf":       tlog.VerifyInclusion(head, p.Index, other, hashes),
			"another root":       tlog.VerifyInclusion(tlog.Checkpoint{Size: head.Size, Root: other}, p.Index, leaf, hashes),
			"an empty tree":      tlog.VerifyInclusion(heads[0], p.Index, leaf, hashes),
			"one hash more":      tlog.VerifyInclusion(head, p.Index, leaf, append(slices.Clone(hashes), other[:])),
			"a short hash":       tlog.VerifyInclusion(head, p.Index, leaf, append(slices.Clone(hashes), other[1:])),
			"a thousand hashes":  tlog.VerifyInclusion(head, p.Index, leaf, slices.Repeat([][]byte{other[:]}, 1000)),
		}
		tamper(hashes, func(name string, changed [][]byte) { bad[name] = tlog.VerifyInclusion(head, p.Index, leaf, changed) })
		for name, err := range bad {
			if !errors.Is(err, tlog.ErrProof) {
				t.Errorf("leaf %d of %d with %s: %v", p.Index, p.Size, name, err)
			}
		}
	}
}

func TestRFC6962Consistency(t *testing.T) {
	v, _, heads := load(t)
	for _, p := range v.Consistency {
		hashes, older, newer := decodeAll(t, p.Hashes), heads[p.Old], heads[p.New]
		if err := tlog.VerifyConsistency(older, newer, hashes); err != nil {
			t.Errorf("from %d to %d: %v", p.Old, p.New, err)
		}
		wrong := older
		wrong.Root[0] ^= 1
		bad := map[string]error{
			"another root before": tlog.VerifyConsistency(wrong, newer, hashes),
			"one hash more":       tlog.VerifyConsistency(older, newer, append(slices.Clone(hashes), wrong.Root[:])),
		}
		if p.Old > 0 {
			wrong = newer
			wrong.Root[0] ^= 1
			bad["another root after"] = tlog.VerifyConsistency(older, wrong, hashes)
		}
		if p.Old != p.New {
			bad["the other way round"] = tlog.VerifyConsistency(newer, older, hashes)
		}
		tamper(hashes, func(name string, changed [][]byte) { bad[name] = tlog.VerifyConsistency(older, newer, changed) })
		for name, err := range bad {
			if !errors.Is(err, tlog.ErrProof) {
				t.Errorf("from %d to %d with %s: %v", p.Old, p.New, name, err)
			}
		}
	}
}

// tamper changes each hash of a proof, and leaves each out.
func tamper(hashes [][]byte, try func(string, [][]byte)) {
	for i := range hashes {
		changed := slices.Clone(hashes)
		changed[i] = bytes.Clone(changed[i])
		changed[i][i%32] ^= 0x10
		try(fmt.Sprintf("hash %d changed", i), changed)
		try(fmt.Sprintf("hash %d left out", i), slices.Delete(slices.Clone(hashes), i, i+1))
	}
}

// The layouts of PROTOCOL 7.9, spelled out by hand.
func TestLeaves(t *testing.T) {
	key := [32]byte{1, 2, 31: 9}
	inner := sha256.Sum256([]byte("alice\x00" + string(key[:])))
	if got, want := tlog.BindingLeaf("alice", key), sha256.Sum256([]byte("\x00"+string(inner[:]))); got != want {
		t.Errorf("binding %x, want %x", got, want)
	}
	inner = sha256.Sum256([]byte(string(key[:]) + "\x00superseded"))
	if got, want := tlog.RevocationLeaf(key, "superseded"), sha256.Sum256([]byte("\x02"+string(inner[:]))); got != want {
		t.Errorf("revocation %x, want %x", got, want)
	}
	if got, want := tlog.Node(inner[:], key[:]), sha256.Sum256([]byte("\x01"+string(inner[:])+string(key[:]))); !bytes.Equal(got, want[:]) {
		t.Errorf("node %x, want %x", got, want)
	}
	for reason, want := range map[string]bool{"compromised": true, "superseded": true, "user_revoked": true, "": false, "Compromised": false, "lost": false} {
		if tlog.IsReason(reason) != want {
			t.Errorf("reason %q", reason)
		}
	}
}

var key = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))

func sign(t testing.TB, origin string, c tlog.Checkpoint) string {
	t.Helper()
	s, err := tlog.NewSigner(origin, key)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// The text of a checkpoint as C2SP tlog-checkpoint and signed-note have it,
// spelled out by hand.
func TestCheckpointLayout(t *testing.T) {
	_, _, heads := load(t)
	public := key.Public().(ed25519.PublicKey)
	body := "home.example/qpc\n8\n" + base64.StdEncoding.EncodeToString(heads[8].Root[:]) + "\n"
	keyHash := sha256.Sum256([]byte("home.example/qpc\n\x01" + string(public)))
	signature := append(keyHash[:4:4], ed25519.Sign(key, []byte(body))...)
	want := body + "\n— home.example/qpc " + base64.StdEncoding.EncodeToString(signature) + "\n"
	got := sign(t, tlog.Origin("home.example"), heads[8])
	if got != want {
		t.Fatalf("got\n%s\nwant\n%s", got, want)
	}
	opened, err := tlog.Open(got, "home.example/qpc", public)
	if err != nil || opened != heads[8] {
		t.Errorf("opened %v, %v", opened, err)
	}
	// A witness adds its signature; that changes nothing.
	witness := got + "— witness.example " + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{1}, 76)) + "\n"
	if opened, err := tlog.Open(witness, "home.example/qpc", public); err != nil || opened != heads[8] {
		t.Errorf("with a witness: %v, %v", opened, err)
	}
	if origin, err := tlog.OriginOf(got); err != nil || origin != "home.example/qpc" {
		t.Errorf("its origin: %q, %v", origin, err)
	}
	if name, ok := tlog.ServerName("home.example/qpc"); name != "home.example" || !ok {
		t.Errorf("its server: %q", name)
	}
}

func TestOpenRefuses(t *testing.T) {
	const origin = "home/qpc"
	public := key.Public().(ed25519.PublicKey)
	good := sign(t, origin, tlog.Checkpoint{Size: 12, Root: tlog.Hash{3}})
	// resign signs any text as a checkpoint is.
	resign := func(body string) string {
		keyHash := sha256.Sum256([]byte(origin + "\n\x01" + string(public)))
		return body + "\n— " + origin + " " + base64.StdEncoding.EncodeToString(append(keyHash[:4:4], ed25519.Sign(key, []byte(body))...)) + "\n"
	}
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	if _, err := tlog.Open(resign("home/qpc\n0\n"+root+"\n"), origin, public); err != nil {
		t.Fatalf("this test signs wrongly: %v", err)
	}
	other := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	for name, test := range map[string]struct {
		signed, origin string
		key            []byte
		want           error
	}{
		"another key":       {good, origin, other, tlog.ErrSignature},
		"another origin":    {good, "away/qpc", public, tlog.ErrSignature},
		"a short key":       {good, origin, public[1:], tlog.ErrMalformed},
		"no origin":         {good, "", public, tlog.ErrMalformed},
		"origin with space": {good, "a b/qpc", public, tlog.ErrMalformed},
		"empty":             {"", origin, public, tlog.ErrMalformed},
		"no signature":      {good[:strings.Index(good, "—")], origin, public, tlog.ErrMalformed},
		"cut":               {good[:len(good)-1], origin, public, tlog.ErrMalformed},
		"too long":          {good + strings.Repeat("— w AAAAAAAA\n", 400), origin, public, tlog.ErrMalformed},
		"another's text":    {resign("away/qpc\n1\n" + root + "\n"), origin, public, tlog.ErrMalformed},
		"a line more":       {resign("home/qpc\n1\n" + root + "\nmore\n"), origin, public, tlog.ErrMalformed},
		"a line less":       {resign("home/qpc\n1\n"), origin, public, tlog.ErrMalformed},
		"leading zero":      {resign("home/qpc\n01\n" + root + "\n"), origin, public, tlog.ErrMalformed},
		"plus":              {resign("home/qpc\n+1\n" + root + "\n"), origin, public, tlog.ErrMalformed},
		"negative":          {resign("home/qpc\n-1\n" + root + "\n"), origin, public, tlog.ErrMalformed},
		"2^63 entries":      {resign("home/qpc\n9223372036854775808\n" + root + "\n"), origin, public, tlog.ErrMalformed},
		"a short root":      {resign("home/qpc\n1\nAAAA\n"), origin, public, tlog.ErrMalformed},
		"no base64":         {resign("home/qpc\n1\n!" + root[1:] + "\n"), origin, public, tlog.ErrMalformed},
		"base64 with rest":  {resign("home/qpc\n1\n" + root[:42] + "B=\n"), origin, public, tlog.ErrMalformed},
	} {
		if c, err := tlog.Open(test.signed, test.origin, test.key); !errors.Is(err, test.want) || c != (tlog.Checkpoint{}) {
			t.Errorf("%s: %v, %v, want %v", name, c, err, test.want)
		}
	}
	// No byte can be changed but within the base64 of a signature line.
	for i := range len(good) {
		changed := []byte(good)
		changed[i] ^= 1
		if c, err := tlog.Open(string(changed), origin, public); err == nil {
			t.Errorf("byte %d changed: %v", i, c)
		}
	}
	for _, signed := range []string{"", "home/qpc", "/qpc\n", "home\n", strings.Repeat("x", 5000) + "/qpc\n"} {
		if origin, err := tlog.OriginOf(signed); !errors.Is(err, tlog.ErrMalformed) {
			t.Errorf("%.20q has the origin %q, %v", signed, origin, err)
		}
	}
	for _, origin := range []string{"", "a b/qpc", "a+b/qpc"} {
		if _, err := tlog.NewSigner(origin, key); err == nil {
			t.Errorf("a signer for %q", origin)
		}
	}
	if _, err := tlog.NewSigner(origin, key[1:]); err == nil {
		t.Error("a signer with a short key")
	}
}

// FuzzOpen: whatever opens is what was signed.
func FuzzOpen(f *testing.F) {
	const origin = "home/qpc"
	public := key.Public().(ed25519.PublicKey)
	for _, size := range []uint64{0, 1, 1 << 40} {
		f.Add(sign(f, origin, tlog.Checkpoint{Size: size, Root: tlog.Hash{byte(size)}}))
	}
	f.Add("home/qpc\n1\nAAAA\n\n— home/qpc AAAA\n")
	f.Fuzz(func(t *testing.T, signed string) {
		c, err := tlog.Open(signed, origin, public)
		if err != nil {
			if !errors.Is(err, tlog.ErrMalformed) && !errors.Is(err, tlog.ErrSignature) {
				t.Errorf("an error of no kind: %v", err)
			}
			return
		}
		again := sign(t, origin, c)
		if head, _, _ := strings.Cut(again, "\n\n"); !strings.HasPrefix(signed, head+"\n\n") {
			t.Errorf("%q opens as %v", signed, c)
		}
	})
}

// FuzzProofs: nothing made up verifies, and nothing panics.
func FuzzProofs(f *testing.F) {
	v, leaves, heads := load(f)
	for _, p := range v.Inclusion {
		f.Add(p.Index, p.Size, bytes.Join(decodeAll(f, p.Hashes), nil))
	}
	for _, p := range v.Consistency {
		f.Add(p.Old, p.New, bytes.Join(decodeAll(f, p.Hashes), nil))
	}
	f.Fuzz(func(t *testing.T, a, b uint64, joined []byte) {
		var hashes [][]byte
		for chunk := range slices.Chunk(joined, 32) {
			hashes = append(hashes, chunk)
		}
		head := tlog.Checkpoint{Size: b, Root: heads[min(b, 8)].Root}
		leaf := leaves[min(a, 7)]
		if err := tlog.VerifyInclusion(head, a, leaf, hashes); err == nil && (b > 8 || a >= b) {
			t.Errorf("leaf %d is proven to be in a made-up tree of %d", a, b)
		}
		leaf = sha256.Sum256(binary.BigEndian.AppendUint64(nil, a))
		if err := tlog.VerifyInclusion(head, a, leaf, hashes); err == nil {
			t.Errorf("a made-up leaf is proven at %d of %d", a, b)
		}
		older := tlog.Checkpoint{Size: a, Root: leaf}
		if err := tlog.VerifyConsistency(older, head, hashes); err == nil {
			t.Errorf("a made-up tree of %d is proven to begin the one of %d", a, b)
		}
	})
}
