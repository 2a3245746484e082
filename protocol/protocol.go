// Package protocol holds what host and guest have in common: the agent's service (agent.proto),
// numbers that both sides must agree on, the handshake that checks that they are of one build,
// and the headers of the raw streams. It starts no goroutine and keeps no state.
//
// What happens on a channel, in this order: Greet and Answer, once; a session of package mux;
// the control stream, which the host opens first; then the streams of each process, after
// Create or Exec has returned and before its Wait.
package protocol

const (
	// Version is the version of the protocol. Host and agent of different versions refuse each
	// other in the handshake. Raise it with every incompatible change of agent.proto, the
	// handshake, the session or the stream header.
	Version = 3

	// InitProcess is the process_id of a container's first process.
	InitProcess = "init"

	// ChannelPort is the name of the virtio-serial port that carries the agent
	// channel (/sys/class/virtio-ports/*/name in the guest).
	ChannelPort = "org.huskvm.agent"

	// VsockPort is the AF_VSOCK port on which the agent waits for one connection of its host,
	// if the host offers one. The connection carries the session. The agent closes the port
	// afterwards.
	VsockPort = 1024

	// ReservedVsockPort is the highest port that only a process with CAP_NET_BIND_SERVICE can
	// bind (LAST_RESERVED_PORT in the kernel's af_vsock.c). The host dials from such a port.
	ReservedVsockPort = 1023

	// PrepareParam on the kernel's command line tells the agent that its guest becomes a memory
	// template. The agent then does everything that the first container would have to wait for,
	// before it opens the channel.
	PrepareParam = "husk.prepare"

	// AgentEnv is on the kernel's command line, and the kernel passes it to PID 1 as
	// environment. It stops Go from interrupting goroutines that run for 10 ms by a signal. In
	// an emulated guest most run that long, and the signals would take a tenth of a container's
	// start.
	AgentEnv = "GODEBUG=asyncpreemptoff=1"

	// MaxMessage is the size of the largest ttrpc message, in bytes. It is ttrpc's own limit.
	MaxMessage = 4 << 20
)
