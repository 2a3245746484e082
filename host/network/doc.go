// Package network connects a container's network namespace on the host to the network cards of
// its guest.
//
// All functions work in the network namespace of the calling thread, except [Leave], which
// enters the namespace that it is given. The supervisor calls them after all of its threads
// have moved into the container's namespace:
//
//	taps, err := network.OpenTaps(n)          // before the VM boots and before pivot_root
//	found, skipped, err := network.Scan()     // at start: engines wire the namespace after create
//	links, err := network.Join(network.Pair{Interface: found[0], Tap: taps[0], AntiSpoof: antiSpoof})
//	// ... and the guest gives its card the name, MAC, addresses and routes of
//	// found[0].ToProto(taps[0].MAC)
//
// Join redirects, with tc, all frames that arrive on the interface to the tap, and all frames
// that the guest sends to the interface. The interface keeps its addresses and routes on the
// host, because engines read them, but the host's network stack receives none of its frames:
// only the guest answers. Netfilter rules of the namespace do not see the guest's traffic.
// ReadRules and Sysctls return what the guest has to apply instead, and LegacyFilters and
// OtherFilters name what it cannot. Frames from the guest must have the senders in
// Pair.AntiSpoof; for this check they go through a pair of virtual interfaces (hop.go).
//
// A tap ends when its last open file is closed, which is the vmm's. If the supervisor is
// killed, the redirection and the hop stay in a namespace that has a path of its own; [Leave]
// removes both.
package network
