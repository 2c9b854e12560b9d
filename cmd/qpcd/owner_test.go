package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quicprochat/qpcd/cmd/qpcd/internal/command"
	"github.com/quicprochat/qpcd/pkg/opaque"
	"github.com/quicprochat/qpcd/pkg/proof"
	"github.com/quicprochat/qpcd/pkg/qpcpb"
	"github.com/quicprochat/qpcd/pkg/rpc"
	"github.com/quicprochat/qpcd/pkg/transport"
)

var update = flag.Bool("update", false, "write the generated part of docs/running.md anew")

// cmdRegister makes an account with one device, the same keys for a name each
// time.
func cmdRegister(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "register ADDR NAME")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn := dial(ts, args[0], transport.TrustFirstUse(anyServer{}))
	defer conn.Close(transport.CloseNormal, "")
	caller, name := rpc.NewClient(conn), args[1]
	auth := qpcpb.NewAuthClient(caller)
	seed, device := sha256.Sum256([]byte("seed of "+name)), sha256.Sum256([]byte("device of "+name))
	key := ed25519.NewKeyFromSeed(seed[:])
	identity := key.Public().(ed25519.PublicKey)

	registration, request, err := opaque.NewRegistration(rand.Reader, []byte("password"))
	ts.Check(err)
	started, err := auth.OpaqueRegisterStart(ctx, &qpcpb.OpaqueRegisterStartRequest{Username: name, Request: request})
	ts.Check(err)
	upload, _, err := registration.Finish(started.Response)
	ts.Check(err)
	_, err = auth.OpaqueRegisterFinish(ctx, &qpcpb.OpaqueRegisterFinishRequest{
		Username: name, Upload: upload, IdentityKey: identity, IdentityProof: proof.SignIdentity(key, name, upload),
	})
	ts.Check(err)
	login, ke1, err := opaque.NewLogin(rand.Reader, []byte("password"))
	ts.Check(err)
	answer, err := auth.OpaqueLoginStart(ctx, &qpcpb.OpaqueLoginStartRequest{Username: name, Request: ke1})
	ts.Check(err)
	ke3, _, _, _, err := login.Finish(answer.Response)
	ts.Check(err)
	_, err = auth.OpaqueLoginFinish(ctx, &qpcpb.OpaqueLoginFinishRequest{Username: name, Finalization: ke3, IdentityKey: identity})
	ts.Check(err)
	_, err = qpcpb.NewDeviceClient(caller).RegisterDevice(ctx, &qpcpb.RegisterDeviceRequest{DeviceId: device[:16], DeviceName: "phone of " + name})
	ts.Check(err)
}

// cmdShape compares the names and types in a JSON file with a golden file, in
// which each line is a path and a type.
func cmdShape(ts *testscript.TestScript, neg bool, args []string) {
	usageOf(ts, neg, len(args) == 2, "shape JSON WANT")
	var v any
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &v))
	var lines []string
	shape(v, "", &lines)
	slices.Sort(lines)
	got := strings.Join(slices.Compact(lines), "\n") + "\n"
	if want := ts.ReadFile(args[1]); got != want {
		ts.Fatalf("the shape is\n%s\nwant\n%s", got, want)
	}
}

func shape(v any, path string, lines *[]string) {
	switch v := v.(type) {
	case map[string]any:
		for name, field := range v {
			shape(field, strings.TrimPrefix(path+"."+name, "."), lines)
		}
	case []any:
		if len(v) == 0 {
			*lines = append(*lines, path+"[] empty")
		}
		for _, element := range v {
			shape(element, path+"[]", lines)
		}
	case nil:
		*lines = append(*lines, path+" null")
	default:
		*lines = append(*lines, fmt.Sprintf("%s %T", path, v))
	}
}

// TestCommandTable: every row can be typed and is documented.
func TestCommandTable(t *testing.T) {
	known := map[string]bool{}
	for _, f := range flags() {
		if f.Name == "" || !strings.HasSuffix(f.Does, ".") || known[f.Name] {
			t.Errorf("the flag %q lacks something or is there twice", f.Name)
		}
		known[f.Name] = true
	}
	seen := map[string]bool{}
	for _, c := range commands() {
		if c.Does == "" || c.Example == "" || strings.HasSuffix(c.Does, ".") || seen[c.Name] {
			t.Errorf("the command %q lacks something or is there twice", c.Name)
		}
		seen[c.Name] = true
		for _, f := range strings.Fields(c.Flags) {
			if !known[f] {
				t.Errorf("the command %q takes a flag %q that is in no row", c.Name, f)
			}
		}
		// The example is one of this command.
		words := strings.Fields(c.Example)
		for i, word := range words { // the note of an example has spaces
			words[i] = strings.Trim(word, "'")
		}
		if got := strings.Join(words[:min(len(words), 1+len(strings.Fields(c.Name)))], " "); got != strings.TrimSpace("qpcd "+c.Name) {
			t.Errorf("the example of %q is one of %q", c.Name, got)
		}
	}
}

// TestRunningPageIsCurrent: the list of commands in docs/running.md is the
// table's.
func TestRunningPageIsCurrent(t *testing.T) {
	const begin, end = "<!-- Generated from the table in cmd/qpcd: go generate ./cmd/qpcd -->\n", "<!-- End of what is generated. -->\n"
	path := filepath.Join("..", "..", "docs", "running.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("docs/running.md has lost the marks around its generated part")
	}
	var b strings.Builder
	b.WriteString(before + begin + "\n")
	command.WriteMarkdown(&b, commands(), flags())
	b.WriteString("\n### Exit codes\n\n")
	for _, e := range exits() {
		fmt.Fprintf(&b, "- %d: %s\n", e.code, e.when)
	}
	b.WriteString("\n" + end + after)
	if b.String() == string(page) {
		return
	}
	if !*update {
		t.Fatal("docs/running.md is out of date; run: go generate ./cmd/qpcd")
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}
