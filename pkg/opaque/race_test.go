//go:build race

package opaque

// The race detector makes a login ten times slower and has nothing to find in
// one goroutine's arithmetic: under it every seventh byte is enough, which
// still meets every field. Without it every byte is flipped.
const tamperStride = 7
