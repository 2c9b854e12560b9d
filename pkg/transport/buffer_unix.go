//go:build unix

package transport

import (
	"net"
	"syscall"
)

// receiveBuffer is the size of a socket's receive buffer in bytes, 0 if unknown.
func receiveBuffer(udp *net.UDPConn) int {
	raw, err := udp.SyscallConn()
	if err != nil {
		return 0
	}
	size := 0
	if err := raw.Control(func(fd uintptr) {
		size, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF)
	}); err != nil {
		return 0
	}
	return size
}
