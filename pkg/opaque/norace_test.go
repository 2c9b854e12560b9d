//go:build !race

package opaque

const tamperStride = 1
