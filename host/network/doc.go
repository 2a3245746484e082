// Package network connects a container's network namespace on the host to the
// network cards of its guest.
//
// Everything here works on the network namespace of the calling thread, except
// [Leave], which enters the one it is given. The supervisor calls it after it
// has moved itself, all threads of it, into the container's namespace:
//
//	taps, err := network.OpenTaps(n)          // before the VM boots and before pivot_root
//	found, skipped, err := network.Scan()     // at start: engines wire the namespace after create
//	links, err := network.Join(network.Pair{Interface: found[0], Tap: taps[0], Sources: sources})
//	// ... and the guest gives its card the name, MAC, addresses and routes of
//	// found[0].ToProto(taps[0].MAC)
//
// Join redirects, with tc, all that arrives on the interface to the tap and all
// that the guest sends to the interface. The interface keeps its addresses and
// routes on the host, for engines read them back, but the host's own network
// stack no longer hears a frame of it: only the guest answers. Netfilter rules
// in the namespace do not see the guest's traffic: ReadRules and Sysctls are for
// taking them into the guest, LegacyFilters and OtherFilters name what can't be. What
// comes from the guest is held to the senders in Pair.Sources.
//
// A tap dies with the last file that holds it open, which is the vmm's. What
// outlives a killed supervisor is the redirection on the interface itself,
// where the namespace has a path of its own; [Leave] removes that.
package network
