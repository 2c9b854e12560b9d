// Package interop holds no program, only tests of qpcd, the program, against
// what this project did not write and on machines it does not run on:
//
//   - servers built for other processors, under qemu, with the native client
//     (TestEmulated)
//   - opaque-ke as OPAQUE client, in WebAssembly (TestOPAQUE)
//   - quiche as QUIC client (TestQUIC)
//   - three servers that federate, in network namespaces: partition, power cut,
//     and peers that lie, hang and replay (TestFederation)
//
// Each test skips with a sentence when what it needs is not installed, and
// fails instead when QPC_INTEROP is "required", as it is in CI.
package interop
