//go:build js

package transport

// translate has nothing to translate where there is no quic-go.
func translate(err error) error { return err }
