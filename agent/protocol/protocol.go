// Package protocol is what host and guest have in common: the agent's service
// (agent.proto), the numbers both sides must agree on, the handshake that
// checks that they do, and the header that opens a raw stream. Types only: it
// starts nothing and keeps no state.
package protocol

const (
	// Version is the protocol version. Host and agent of different versions
	// refuse each other in the handshake; raise it with every incompatible
	// change of agent.proto, the handshake or the stream header.
	Version = 2

	// InitProcess is the process_id of the container's own process.
	InitProcess = "init"

	// ChannelPort is the name of the virtio-serial port that carries the agent
	// channel (/sys/class/virtio-ports/*/name in the guest).
	ChannelPort = "org.huskvm.agent"

	// StreamVsockPort is the AF_VSOCK port the agent listens on. To say that it
	// is up, the agent dials the host (CID 2) at the port whose number is its
	// own CID: unique on the host, and still right in a clone that woke up with
	// another CID than its template.
	StreamVsockPort = 1024

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
