// Package protocol is what host and guest have in common: the agent's service
// (agent.proto), the numbers both sides must agree on, the handshake that
// checks that they do, and the header that opens a raw stream. Types only: it
// starts nothing and keeps no state.
package protocol

const (
	// Version is the protocol version. Host and agent of different versions
	// refuse each other in the handshake; raise it with every incompatible
	// change of agent.proto, the handshake, the session or the stream header.
	Version = 3

	// InitProcess is the process_id of the container's own process.
	InitProcess = "init"

	// ChannelPort is the name of the virtio-serial port that carries the agent
	// channel (/sys/class/virtio-ports/*/name in the guest).
	ChannelPort = "org.huskvm.agent"

	// VsockPort is the AF_VSOCK port on which the agent waits for the one
	// connection of its host that carries the session, if the host offers one.
	// It closes the port then.
	VsockPort = 1024

	// ReservedVsockPort is the highest source port that the kernel gives to nobody
	// without CAP_NET_BIND_SERVICE (LAST_RESERVED_PORT of the kernel's af_vsock.c).
	// The host dials from one of these.
	ReservedVsockPort = 1023

	// PrepareParam on the kernel's command line tells the agent that its guest
	// becomes a memory template: before it opens the channel it prepares
	// whatever the first container would have to wait for.
	PrepareParam = "husk.prepare"

	// AgentEnv goes on the kernel's command line, which the kernel hands to PID 1
	// as environment. Go stops goroutines that run for 10 ms by a signal, which in
	// an emulated guest is most of them: a tenth of a container's start.
	AgentEnv = "GODEBUG=asyncpreemptoff=1"

	// MaxMessage is the largest ttrpc message either side may send, in bytes
	// (ttrpc's own limit).
	MaxMessage = 4 << 20
)
