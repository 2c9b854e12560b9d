//go:build !unix && !js

package transport

import "net"

// receiveBuffer is the size of a socket's receive buffer in bytes, 0 if unknown.
func receiveBuffer(*net.UDPConn) int { return 0 }
