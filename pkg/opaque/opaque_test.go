package opaque

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"sync"
	"testing"
	"testing/iotest"
)

// The real thing once, Argon2id and all, through the exported door only.
func TestRegisterAndLogIn(t *testing.T) {
	setup, err := NewServerSetup(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server, err := NewServer(setup)
	if err != nil {
		t.Fatal(err)
	}
	password, id := []byte("correct horse battery staple"), []byte("alice")

	registration, request, err := NewRegistration(rand.Reader, password)
	if err != nil {
		t.Fatal(err)
	}
	response, err := server.RegistrationResponse(request, id)
	if err != nil {
		t.Fatal(err)
	}
	record, exportKey, err := registration.Finish(response)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.CheckRegistrationUpload(record); err != nil {
		t.Fatal(err)
	}

	login, ke1, err := NewLogin(rand.Reader, password)
	if err != nil {
		t.Fatal(err)
	}
	ke2, state, err := server.LoginResponse(rand.Reader, record, id, ke1)
	if err != nil {
		t.Fatal(err)
	}
	ke3, clientKey, exportAgain, serverKey, err := login.Finish(ke2)
	if err != nil {
		t.Fatal(err)
	}
	sessionKey, err := state.Finish(ke3)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(clientKey, sessionKey) {
		t.Error("the two sides have different session keys")
	}
	if !bytes.Equal(exportKey, exportAgain) {
		t.Error("the export key of the login is not that of the registration")
	}
	if !bytes.Equal(serverKey, server.PublicKey()) || !bytes.Equal(serverKey, setup.PublicKey()) {
		t.Error("the client learned another server public key")
	}
	for name, got := range map[string]struct{ length, want int }{
		"request":     {len(request), RegistrationRequestLength},
		"response":    {len(response), RegistrationResponseLength},
		"record":      {len(record), RegistrationUploadLength},
		"KE1":         {len(ke1), KE1Length},
		"KE2":         {len(ke2), KE2Length},
		"KE3":         {len(ke3), KE3Length},
		"export key":  {len(exportKey), ExportKeyLength},
		"session key": {len(sessionKey), SessionKeyLength},
		"public key":  {len(serverKey), PublicKeyLength},
	} {
		if got.length != got.want {
			t.Errorf("%s has %d bytes, want %d", name, got.length, got.want)
		}
	}
}

func TestLengths(t *testing.T) {
	// The numbers of PROTOCOL and of RFC 9807, not those of our own sums.
	for name, got := range map[string][2]int{
		"RegistrationRequestLength":  {RegistrationRequestLength, 32},
		"RegistrationResponseLength": {RegistrationResponseLength, 64},
		"RegistrationUploadLength":   {RegistrationUploadLength, 192},
		"KE1Length":                  {KE1Length, 96},
		"KE2Length":                  {KE2Length, 320},
		"KE3Length":                  {KE3Length, 64},
		"ServerSetupLength":          {ServerSetupLength, 225},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %d, want %d", name, got[0], got[1])
		}
	}
}

func TestWhoGetsIn(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	alice, aliceExport := h.registers("alice", "open sesame")
	bob, bobExport := h.registers("bob", "open sesame")
	if bytes.Equal(alice, bob) || bytes.Equal(aliceExport, bobExport) {
		t.Fatal("one password of two users left the same traces")
	}
	empty, _ := h.registers("empty", "")
	long := string(make([]byte, MaxPasswordLength))
	longest, _ := h.registers("longest", long)

	for _, tt := range []struct {
		story, name, password string
		record                []byte
		want                  error
	}{
		{"her own password", "alice", "open sesame", alice, nil},
		{"again", "alice", "open sesame", alice, nil},
		{"a wrong password", "alice", "open barley", alice, ErrAuthentication},
		{"an empty password", "alice", "", alice, ErrAuthentication},
		{"a prefix of it", "alice", "open sesam", alice, ErrAuthentication},
		{"a byte more", "alice", "open sesame\x00", alice, ErrAuthentication},
		{"another case", "alice", "Open sesame", alice, ErrAuthentication},
		{"another's record", "alice", "open sesame", bob, ErrAuthentication},
		{"another's name", "bob", "open sesame", alice, ErrAuthentication},
		{"a name that does not exist", "carol", "open sesame", nil, ErrAuthentication},
		{"a deleted account", "alice", "open sesame", nil, ErrAuthentication},
		{"registered without a password", "empty", "", empty, nil},
		{"registered with the longest one", "longest", long, longest, nil},
	} {
		t.Run(tt.story, func(t *testing.T) {
			if _, err := h.logsIn(tt.name, tt.password, tt.record); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}

	if again, err := h.logsIn("alice", "open sesame", alice); err != nil || !bytes.Equal(again, aliceExport) {
		t.Errorf("alice's export key changed: %x, %v; want %x", again, err, aliceExport)
	}
}

func TestPasswordChange(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	before, _ := h.registers("alice", "old")
	after, _ := h.registers("alice", "new")
	for _, tt := range []struct {
		story, password string
		record          []byte
		want            error
	}{
		{"old password, old record", "old", before, nil},
		{"new password, new record", "new", after, nil},
		{"old password, new record", "old", after, ErrAuthentication},
		{"new password, old record", "new", before, ErrAuthentication},
	} {
		if _, err := h.logsIn("alice", tt.password, tt.record); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.story, err, tt.want)
		}
	}
}

// A server that took over the records and the OPRF seed, but not the private
// key, is found out by the client.
func TestAnotherServerKey(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	impostor := newHouse(t, testOnlyConfig())
	setup := impostor.setup
	setup.oprfSeed = h.setup.oprfSeed
	server, err := newServer(h.config, setup)
	if err != nil {
		t.Fatal(err)
	}
	impostor.server = server
	if _, err := impostor.logsIn("alice", "secret", record); !errors.Is(err, ErrAuthentication) {
		t.Errorf("the client accepted it: %v", err)
	}
	// With the true public key on its lips it still lacks the private one.
	server.setup.publicKey = h.setup.publicKey
	if _, err := impostor.logsIn("alice", "secret", record); !errors.Is(err, ErrAuthentication) {
		t.Errorf("the client accepted a borrowed public key: %v", err)
	}
}

func TestLoginStateAllowsOneAttempt(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")

	client, ke2, state := h.asks("alice", "secret", record)
	ke3, _, _, _, err := client.Finish(ke2)
	if err != nil {
		t.Fatal(err)
	}
	wrong := bytes.Clone(ke3)
	wrong[0] ^= 1
	if key, err := state.Finish(wrong); !errors.Is(err, ErrAuthentication) || key != nil {
		t.Errorf("a wrong KE3 got %x, %v", key, err)
	}
	if key, err := state.Finish(ke3); err == nil || key != nil {
		t.Error("a second attempt on one state was answered")
	}

	client, ke2, state = h.asks("alice", "secret", record)
	if ke3, _, _, _, err = client.Finish(ke2); err != nil {
		t.Fatal(err)
	}
	// Of many callers with copies of one state, one gets the key.
	var mu sync.Mutex
	var got int
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if key, err := state.Finish(ke3); err == nil && len(key) == SessionKeyLength {
				mu.Lock()
				got++
				mu.Unlock()
			}
		})
	}
	all.Wait()
	if got != 1 {
		t.Errorf("%d of 8 concurrent attempts got the key, want 1", got)
	}

	// All zeros is what an unset state would expect if it expected anything.
	if key, err := (LoginState{}).Finish(make([]byte, KE3Length)); err == nil || key != nil {
		t.Error("the zero LoginState let someone in")
	}
	if _, _, _, _, err := client.Finish(ke2); err == nil {
		t.Error("a client login was finished twice")
	}
	registration, request, err := newRegistration(h.config, rand.Reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := h.server.RegistrationResponse(request, []byte("bob"))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := registration.Finish(response); err != nil {
		t.Fatal(err)
	}
	if _, _, err := registration.Finish(response); err == nil {
		t.Error("a registration was finished twice")
	}
}

// KE3 of one login does not finish another of the same user.
func TestReplayedKE3(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	client, ke2, _ := h.asks("alice", "secret", record)
	ke3, _, _, _, err := client.Finish(ke2)
	if err != nil {
		t.Fatal(err)
	}
	_, _, other := h.asks("alice", "secret", record)
	if _, err := other.Finish(ke3); !errors.Is(err, ErrAuthentication) {
		t.Errorf("got %v, want ErrAuthentication", err)
	}
}

// The server must answer for a name without a record as it does for one with.
func TestUnknownNamesLookLikeKnownOnes(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	_, ke1, err := newLogin(h.config, rand.Reader, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	answer := func(server *Server, record []byte, name string, seed byte) []byte {
		t.Helper()
		random := bytes.NewReader(bytes.Repeat([]byte{seed}, nonceLength+nonceLength+seedLength))
		ke2, state, err := server.LoginResponse(random, record, []byte(name), ke1)
		if err != nil {
			t.Fatal(err)
		}
		if random.Len() != 0 {
			t.Errorf("%d random bytes were left over", random.Len())
		}
		if _, err := state.Finish(make([]byte, KE3Length)); !errors.Is(err, ErrAuthentication) {
			t.Errorf("an all-zero KE3 got %v", err)
		}
		if len(ke2) != KE2Length {
			t.Errorf("KE2 has %d bytes, want %d", len(ke2), KE2Length)
		}
		if _, err := parseKE2(ke2); err != nil {
			t.Errorf("KE2 does not parse: %v", err)
		}
		return ke2
	}
	const evaluated = elementLength

	// Registering leaves the OPRF answer as it was.
	known, unknown := answer(h.server, record, "alice", 1), answer(h.server, nil, "alice", 1)
	if !bytes.Equal(known[:evaluated], unknown[:evaluated]) {
		t.Error("the OPRF answer tells whether the name has a record")
	}
	if bytes.Equal(known, unknown) {
		t.Error("the record had no influence at all")
	}

	// The same name is answered from the same fake record, now and by a later
	// process with the same setup; with fresh randomness nothing repeats but
	// the OPRF answer, as with a real record.
	if !bytes.Equal(unknown, answer(h.server, nil, "alice", 1)) {
		t.Error("two answers for one unknown name differ")
	}
	saved, err := h.setup.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	var setup ServerSetup
	if err := setup.UnmarshalBinary(saved); err != nil {
		t.Fatal(err)
	}
	restarted, err := newServer(h.config, setup)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(unknown, answer(restarted, nil, "alice", 1)) {
		t.Error("a restart changed the answer for an unknown name")
	}
	for _, r := range [][]byte{record, nil} {
		a, b := answer(h.server, r, "alice", 1), answer(h.server, r, "alice", 2)
		for at := evaluated; at+8 <= KE2Length; at += 8 {
			if bytes.Equal(a[at:at+8], b[at:at+8]) {
				t.Errorf("record %t: bytes %d to %d repeat between logins", r != nil, at, at+8)
			}
		}
	}
	other := answer(h.server, nil, "bob", 1)
	if at := evaluated + nonceLength; bytes.Equal(other[at:at+maskedResponseLength], unknown[at:at+maskedResponseLength]) {
		t.Error("two unknown names share a masking key")
	}
	if !bytes.Equal(h.server.fakeRecord([]byte("bob")), restarted.fakeRecord([]byte("bob"))) {
		t.Error("the fake record of one name changed")
	}
	if err := h.server.CheckRegistrationUpload(h.server.fakeRecord([]byte("bob"))); err != nil {
		t.Errorf("a fake record would not pass as a real one: %v", err)
	}
}

// A password that happens to be registered nowhere cannot match a fake record,
// whatever the client makes of it.
func TestUnknownNameNeverAuthenticates(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	for _, password := range []string{"", "secret", "carol"} {
		if _, err := h.logsIn("carol", password, nil); !errors.Is(err, ErrAuthentication) {
			t.Errorf("password %q: got %v, want ErrAuthentication", password, err)
		}
	}
}

func TestCallersMistakes(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	_, request, err := newRegistration(h.config, rand.Reader, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	_, ke1, err := newLogin(h.config, rand.Reader, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	short := func() io.Reader { return io.LimitReader(rand.Reader, 31) }
	stuck := bytes.NewReader(bytes.Repeat([]byte{0xff}, 1<<20))
	zeros := bytes.NewReader(make([]byte, 1<<20))
	broken := errors.New("no entropy")

	for _, tt := range []struct {
		mistake string
		call    func() error
	}{
		{"no name at registration", func() error { _, err := h.server.RegistrationResponse(request, nil); return err }},
		{"no name at login", func() error { _, _, err := h.server.LoginResponse(rand.Reader, record, nil, ke1); return err }},
		{"too long a name", func() error {
			_, err := h.server.RegistrationResponse(request, make([]byte, MaxCredentialIDLength+1))
			return err
		}},
		{"an empty record that is not nil", func() error {
			_, _, err := h.server.LoginResponse(rand.Reader, []byte{}, []byte("alice"), ke1)
			return err
		}},
		{"a cut record", func() error {
			_, _, err := h.server.LoginResponse(rand.Reader, record[:100], []byte("alice"), ke1)
			return err
		}},
		{"too long a password to register", func() error {
			_, _, err := newRegistration(h.config, rand.Reader, make([]byte, MaxPasswordLength+1))
			return err
		}},
		{"too long a password to log in", func() error {
			_, _, err := newLogin(h.config, rand.Reader, make([]byte, MaxPasswordLength+1))
			return err
		}},
		{"randomness runs out at registration", func() error { _, _, err := newRegistration(h.config, short(), nil); return err }},
		{"randomness runs out at login", func() error { _, _, err := newLogin(h.config, short(), nil); return err }},
		{"randomness runs out in the server", func() error {
			_, _, err := h.server.LoginResponse(short(), record, []byte("alice"), ke1)
			return err
		}},
		{"randomness runs out at setup", func() error { _, err := NewServerSetup(short()); return err }},
		{"a stuck source", func() error { _, _, err := newLogin(h.config, stuck, nil); return err }},
		{"a source of zeros", func() error { _, _, err := newLogin(h.config, zeros, nil); return err }},
		{"a failing source", func() error { _, _, err := newLogin(h.config, iotest.ErrReader(broken), nil); return err }},
		{"a zero setup", func() error { _, err := NewServer(ServerSetup{}); return err }},
	} {
		t.Run(tt.mistake, func(t *testing.T) {
			err := tt.call()
			if err == nil {
				t.Fatal("no error")
			}
			// None of these is the peer's doing.
			if errors.Is(err, ErrMalformed) || errors.Is(err, ErrAuthentication) {
				t.Errorf("the peer is blamed: %v", err)
			}
		})
	}
	if _, _, err := newLogin(h.config, iotest.ErrReader(broken), nil); !errors.Is(err, broken) {
		t.Errorf("the cause is lost: %v", err)
	}
}

// A caller may wipe or reuse whatever it passed in.
func TestInputsAreNotKept(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	password := []byte("secret")
	client, ke1, err := newLogin(h.config, rand.Reader, password)
	if err != nil {
		t.Fatal(err)
	}
	clear(password)
	sent, stored, name := bytes.Clone(ke1), bytes.Clone(record), []byte("alice")
	clear(ke1)
	ke2, state, err := h.server.LoginResponse(rand.Reader, stored, name, sent)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(stored, record) || string(name) != "alice" {
		t.Error("the server changed its inputs")
	}
	clear(sent)
	clear(stored)
	ke3, clientKey, _, _, err := client.Finish(ke2)
	if err != nil {
		t.Fatal(err)
	}
	clear(ke2)
	sessionKey, err := state.Finish(ke3)
	if err != nil || !bytes.Equal(sessionKey, clientKey) {
		t.Errorf("the login broke: %v", err)
	}
}

// One Server serves many goroutines (run with -race).
func TestConcurrentLogins(t *testing.T) {
	h := newHouse(t, testOnlyConfig())
	record, _ := h.registers("alice", "secret")
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			r := record
			if i%2 == 1 {
				r = nil
			}
			_, err := h.logsIn("alice", "secret", r)
			if (r != nil) != (err == nil) {
				t.Errorf("record %t: %v", r != nil, err)
			}
		})
	}
	all.Wait()
}
