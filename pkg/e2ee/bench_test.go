package e2ee_test

import (
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/quicprochat/qpcd/pkg/e2ee"
)

// benchGroup is a group of size members; the creator and one other are given.
func benchGroup(b *testing.B, size int) (creator, other *e2ee.Group) {
	b.Helper()
	device := newIdentity(b, "creator").FirstDevice()
	creator, err := e2ee.NewGroup(device, []byte("sixteen bytes id"))
	must(b, err)
	var packages [][]byte
	var otherDevice *e2ee.Device
	private := map[e2ee.KeyPackageRef][]byte{}
	for i := 1; i < size; i++ {
		d := newIdentity(b, fmt.Sprint("member ", i)).FirstDevice()
		public, secret, ref, err := e2ee.NewKeyPackage(d, e2ee.Unlimited, false)
		must(b, err)
		packages = append(packages, public)
		if i == 1 {
			otherDevice, private[ref] = d, secret
		}
	}
	_, welcome, err := creator.Add(packages)
	must(b, err)
	_, err = creator.MergeCommit()
	must(b, err)
	joined, err := e2ee.JoinGroup(otherDevice, welcome, func(ref e2ee.KeyPackageRef) []byte { return private[ref] })
	must(b, err)
	return creator, joined.Group
}

func BenchmarkMessage(b *testing.B) {
	for _, size := range []int{2, 16, 256} {
		b.Run(fmt.Sprint(size, " members"), func(b *testing.B) {
			alice, bob := benchGroup(b, size)
			text := make([]byte, 100)
			b.Run("encrypt", func(b *testing.B) {
				for b.Loop() {
					_, err := alice.Encrypt(text)
					must(b, err)
				}
			})
			b.Run("process", func(b *testing.B) {
				var message []byte
				for b.Loop() {
					b.StopTimer()
					var err error
					message, err = alice.Encrypt(text)
					must(b, err)
					b.StartTimer()
					_, err = bob.Process(message)
					must(b, err)
				}
				b.ReportMetric(float64(len(message)), "wire-B")
			})
			b.Run("marshal", func(b *testing.B) {
				var blob []byte
				for b.Loop() {
					blob = bob.Marshal()
				}
				_, keys := bob.MarshalParts()
				b.ReportMetric(float64(len(blob)), "blob-B")
				b.ReportMetric(float64(len(keys)), "keys-B")
			})
			b.Run("marshal keys", func(b *testing.B) {
				for b.Loop() {
					_, _ = bob.MarshalParts()
				}
			})
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	device := newIdentity(b, "creator").FirstDevice()
	alice, _ := benchGroup(b, 2)
	blob := alice.Marshal()
	for b.Loop() {
		_, err := e2ee.LoadGroup(device, blob)
		must(b, err)
	}
}

func BenchmarkRefresh(b *testing.B) {
	alice, bob := benchGroup(b, 2)
	for b.Loop() {
		commit, err := alice.Refresh()
		must(b, err)
		_, err = alice.MergeCommit()
		must(b, err)
		_, err = bob.Process(commit)
		must(b, err)
	}
	b.ReportMetric(float64(len(bob.Marshal())), "blob-B")
}

func BenchmarkHybrid(b *testing.B) {
	key, who := newHybridKey(b), newIdentity(b, "bob").Key()
	public, text := key.Public(), make([]byte, 400)
	b.Run("seal", func(b *testing.B) {
		for b.Loop() {
			_, err := e2ee.SealHybrid(rand.Reader, public, who, text)
			must(b, err)
		}
	})
	b.Run("open", func(b *testing.B) {
		envelope, err := e2ee.SealHybrid(rand.Reader, public, who, text)
		must(b, err)
		for b.Loop() {
			_, err := key.Open(who, envelope)
			must(b, err)
		}
	})
}
