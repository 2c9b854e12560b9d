package interop_test

import (
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/quicprochat/qpcd/internal/interop/outside"
)

// routers are the machines that qpcd is made for and that the tests do not run
// on. The processor is one that routers have, so that an instruction that only
// better ones know ends the test.
//
// The first four stand for their families and always run. A new machine needs
// two minutes to build for each, so the others run with QPC_ARCHES=all.
func routers() []machine {
	all := []machine{
		// The emulator garbles the control message of segmentation offload in
		// the other byte order; hardware does not.
		{name: "mips", arch: "mips", emulator: []string{"qemu-mips-static", "-cpu", "24Kc"}, environ: []string{"QUIC_GO_DISABLE_GSO=1"}},
		{name: "mipsle", arch: "mipsle", emulator: []string{"qemu-mipsel-static", "-cpu", "24KEc"}},
		{name: "arm_7", arch: "arm_7", emulator: []string{"qemu-arm-static", "-cpu", "cortex-a7"}},
		{name: "arm64", arch: "arm64", emulator: []string{"qemu-aarch64-static", "-cpu", "cortex-a53"}},
		{name: "arm_5", arch: "arm_5", emulator: []string{"qemu-arm-static", "-cpu", "arm926"}},
		{name: "riscv64", arch: "riscv64", emulator: []string{"qemu-riscv64-static"}},
		{name: "386", arch: "386"},
	}
	if os.Getenv("QPC_ARCHES") == "all" {
		return all
	}
	return all[:4]
}

// Two people chat over a server on each kind of router. Then their server moves
// to a machine of another kind and back: the file is the same everywhere,
// whichever SQLite wrote it. Nobody logs in a second time.
func TestEmulated(t *testing.T) {
	for _, router := range routers() {
		t.Run(router.name, func(t *testing.T) {
			switch {
			case testing.Short() && router.arch != "mips":
				t.Skip("-short: mips is the furthest from this machine, and stands for all")
			case router.emulator != nil:
				router.emulator[0] = outside.Program(t, router.emulator[0], "qemu-user-static")
			case router.arch == "386" && runtime.GOARCH != "amd64":
				t.Skip("this machine cannot run 386 programs")
			}
			there, here := router.build(t), home().build(t)

			h := newHouse(t)
			h.start(router, there)
			alice, bob := h.register("alice").on(), h.register("bob").on()
			alice.says(bob, "hello bob")
			bob.reads(alice, "hello bob")
			bob.says(alice, "größer 🙂")
			alice.reads(bob, "größer 🙂")
			long := strings.Repeat("a long line. ", 300)
			alice.says(bob, long)
			bob.reads(alice, long)

			bob.off()
			alice.says(bob, "while you were away")
			h.stop()
			h.start(router, there)
			alice.connected()
			bob.on().reads(alice, "while you were away")

			bob.off()
			alice.says(bob, "before the move")
			h.stop()
			h.start(home(), here)
			alice.connected()
			bob.on().reads(alice, "before the move")

			bob.off()
			alice.says(bob, "before the move back")
			h.stop()
			h.start(router, there)
			alice.connected()
			bob.on().reads(alice, "before the move back")
			bob.says(alice, "there you are")
			alice.reads(bob, "there you are")
			bob.off()
			alice.off()
			h.stop()
		})
	}
}
