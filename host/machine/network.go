package machine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/linux/nftables"
	"github.com/huskvm/husk/protocol"
	"github.com/huskvm/husk/protocol/client"
)

// Network is the wiring between the network namespace of the process that opens it and
// the guest: which interface is joined with which tap, what the guest has been told, and
// the relay to an engine's resolver. It is safe for use by many goroutines.
type Network struct {
	o          NetworkOptions
	policy     *policy
	resolvConf *os.File       // nil: none is mounted
	taps       []*network.Tap // never changed after OpenTaps
	guest      guest          // set by Start

	// unsettled: something has changed that the guest does not know of yet.
	unsettled atomic.Bool
	left      atomic.Bool // see Leave

	// mu is held for as long as the namespace is looked at and the guest told, which may
	// take callTimeout: what the guest has must be of one look. Its fields are below.
	// Whoever waits for it may hold a lock of its own. So nothing of the caller's is
	// called with mu held: see NetworkOptions.Changed.
	mu     sync.Mutex
	joined map[int]*joint // by the interface's index
	given  *protocol.NetworkRequest
	// found and generation are of the look that given is made of, for isStale.
	found        []network.Interface
	generation   uint32
	told         map[string]bool // what the log has already
	cut          bool            // the taps are down, for the guest has not the packet filter that it should
	namesRelayed bool
	changes      <-chan struct{} // of the namespace, from the first Wire on
	followed     bool            // from then on the guest has what the namespace has

	// problemMu guards the next alone, so that who asks does not wait for the guest. It
	// may be taken with mu held, and not the other way round.
	problemMu sync.Mutex
	problem   string // empty: none
}

// NetworkOptions say what the wiring is for.
type NetworkOptions struct {
	ContainerID string // whose network namespace it is
	Walls       Walls
	// Sysctls are the network's settings that the user has asked for. They win over
	// the namespace's.
	Sysctls map[string]string
	// New says that the namespace has been made for the container, and goes with it.
	New bool
	// ResolvConf is the host's path of the file that the container has as
	// /etc/resolv.conf; empty: none of the host's.
	ResolvConf string
	Log        *logrus.Logger
	// Changed is called when Problem says something else than before. No lock is held.
	Changed func()
}

// guest is what the wiring takes of a Machine.
type guest interface {
	Agent() protocol.AgentService
	Stream(ctx context.Context, header protocol.StreamHeader) (client.Stream, error)
}

// OpenNetwork opens what the wiring needs of the host. It is called in the network
// namespace, while paths can be trusted.
func OpenNetwork(o NetworkOptions) (_ *Network, err error) {
	n := &Network{o: o}
	if n.resolvConf, err = openResolvConf(o.ResolvConf); err != nil {
		return nil, err
	}
	if n.policy, err = openPolicy(o.Sysctls, o.New); err != nil {
		return nil, err
	}
	return n, nil
}

// Settle waits until it is known which settings a fresh namespace has. Afterwards the
// process may leave the host's tree.
func (n *Network) Settle() error { return n.policy.settle() }

// OpenTaps makes a tap for each interface that the namespace has by now, and least
// at least, for those that engines put there between create and start, or later.
func (n *Network) OpenTaps(least int) error {
	found, skipped, err := network.Scan()
	if err != nil {
		return err
	}
	if hasTap(skipped) {
		if err := network.RemoveUnheldTaps(); err != nil {
			return err
		}
		if found, skipped, err = network.Scan(); err != nil {
			return err
		}
	}
	if hasTap(skipped) {
		// Two machines with one address on one interface: neither would work.
		return errors.New("the network namespace has another container's virtual machine on it: containers that share one network (--network container:ID, pods) are not supported yet")
	}
	if n.taps, err = network.OpenTaps(max(least, len(found))); err != nil {
		return err
	}
	return n.keepTaps()
}

func hasTap(skipped []network.Skipped) bool {
	return slices.ContainsFunc(skipped, func(s network.Skipped) bool { return s.Tap })
}

// keepTaps lets the taps end with the network namespace, where that goes with the
// container. In a namespace of somebody else's they would be left.
func (n *Network) keepTaps() error {
	if !n.o.New {
		return nil
	}
	for _, t := range n.taps {
		if err := t.Persist(); err != nil {
			return err
		}
	}
	return nil
}

// CloseTaps is called when the vmm has its own descriptors: with these closed a tap ends
// with the vmm.
func (n *Network) CloseTaps() { network.CloseTaps(n.taps) }

// TapIndexes are the taps' interface indexes, by which others can undo the wiring.
func (n *Network) TapIndexes() []int {
	var all []int
	for _, t := range n.taps {
		all = append(all, t.Index)
	}
	return all
}

// Needs says which rights the process has to keep: to speak to the network at all, and to
// change its interfaces.
func (n *Network) Needs() (speaks, changes bool) {
	return len(n.taps) > 0 || n.resolvConf != nil, len(n.taps) > 0
}

// Problem is what the container lacks of its network now; empty: nothing.
func (n *Network) Problem() string {
	n.problemMu.Lock()
	defer n.problemMu.Unlock()
	return n.problem
}

// Wire gives the guest the interfaces, the packet filter and the settings that are in the
// namespace by now, and the resolver. It is for the moment before the container's process
// runs, and may be called again after an error.
func (n *Network) Wire(ctx context.Context) (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.taps) > 0 && n.changes == nil {
		// From before the first look on, so that nothing falls between.
		if n.changes, err = network.Watch(context.Background()); err != nil { //nolint:contextcheck // it outlives the call
			return err
		}
	}
	if err := n.join(ctx); err != nil {
		return err
	}
	return n.relayNames(ctx)
}

// Follow keeps the guest's network that of the namespace from now on, as engines
// connect the running container to networks and disconnect it.
func (n *Network) Follow() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changes == nil || n.followed {
		return
	}
	n.followed = true
	go n.follow(n.changes)
}

// Refresh does not wait for the namespace to be left alone, as Follow does: a process that
// is started after the container has been connected finds the network. It looks itself, for
// on a busy machine the watch may not have told yet of what an engine has done already.
func (n *Network) Refresh() {
	if len(n.taps) > 0 && (n.unsettled.Load() || n.isStale()) {
		n.rejoin()
	}
}

// Leave lets the guest's network be as it is: its container has ended.
func (n *Network) Leave() { n.left.Store(true) }

type joint struct {
	tap   *network.Tap
	links *network.Links
}

// errNoCard is for an interface more than the guest has network cards.
var errNoCard = errors.New("no network card of the guest is free")

// join makes the guest's interfaces and its packet filter those of the network namespace.
// Where the guest refuses, what is new on the host's side is undone. The caller holds mu,
// as with all that follow but for those that take it.
func (n *Network) join(ctx context.Context) error {
	if len(n.taps) == 0 {
		return nil
	}
	// From before the look: what changes meanwhile is looked at again.
	generation, err := nftables.Generation()
	if err != nil {
		return err
	}
	found, skipped, err := network.Scan()
	if err != nil {
		return err
	}
	n.noteSkipped(skipped)
	carried, err := n.policy.read(found)
	if err != nil {
		return err
	}
	if len(carried.uncarried) > 0 && !n.o.Walls.AcceptUncarried {
		return refusal(carried.uncarried)
	}
	for _, what := range carried.uncarried {
		n.tellOnce(what, "a packet filter of the network namespace does not hold in the guest, as was accepted")
	}
	req := &protocol.NetworkRequest{ContainerId: n.o.ContainerID, Sysctls: carried.sysctls, Nftables: carried.rules}
	joined, fresh, missing, err := n.joinFound(found, req)
	if err != nil {
		return errors.Join(err, undo(fresh))
	}
	if err := n.tellGuest(ctx, req); err != nil {
		if uerr := undo(fresh); uerr != nil {
			n.o.Log.WithError(uerr).Warn("undo network")
		}
		return fmt.Errorf("join network: %w", err)
	}
	n.found, n.generation = found, generation
	for index, j := range n.joined {
		if joined[index] == nil {
			err = errors.Join(err, j.links.Undo())
		}
	}
	n.joined = joined
	return errors.Join(missing, err)
}

// joinFound joins each interface with a tap, and adds it to what the guest is told.
// fresh are those that were not joined before, also with an error.
func (n *Network) joinFound(found []network.Interface, req *protocol.NetworkRequest) (joined map[int]*joint, fresh []*joint, missing, err error) {
	joined = map[int]*joint{}
	for _, f := range found {
		j := n.joined[f.Index]
		if j == nil {
			tap := n.freeTap(joined)
			if tap == nil {
				missing = fmt.Errorf("join network: interface %s: %w: create the container with the annotation %s or the setting nics of %d or more",
					f.Name, errNoCard, specconv.AnnotationNICs, len(found))
				continue
			}
			j = &joint{tap: tap}
		}
		joined[f.Index] = j
		req.Interfaces = append(req.Interfaces, f.ToProto(j.tap.MAC))
		sources := network.SourcesOf(&f, found, n.o.Walls.Forging)
		if j.links == nil {
			if j.links, err = network.Join(network.Pair{Interface: f, Tap: j.tap, Sources: sources}); err != nil {
				return nil, fresh, nil, err
			}
			fresh = append(fresh, j)
		} else if err := j.links.Restrict(j.tap, sources); err != nil {
			return nil, fresh, nil, err
		}
	}
	return joined, fresh, missing, nil
}

// tellGuest tells the guest what is new to it.
func (n *Network) tellGuest(ctx context.Context, req *protocol.NetworkRequest) error {
	given := n.given
	if given == nil {
		given = &protocol.NetworkRequest{ContainerId: req.ContainerId}
	}
	if proto.Equal(req, given) {
		return nil
	}
	resp, err := n.guest.Agent().Network(ctx, req)
	if err != nil && len(req.Nftables) > 0 && n.o.Walls.AcceptUncarried {
		n.tellOnce(err.Error(), "the guest does not take the network namespace's packet filter, as was accepted")
		req.Nftables = nil
		resp, err = n.guest.Agent().Network(ctx, req)
	}
	if err != nil {
		return err
	}
	for _, name := range resp.Unset[:min(len(resp.Unset), len(req.Sysctls))] {
		n.tellOnce(fmt.Sprintf("%.200q", name), "the guest's kernel does not take a setting of the network namespace")
	}
	n.given = req
	return nil
}

func (n *Network) tellOnce(what, why string) {
	const most = 256 // the guest has its say in some
	if n.told[what] || len(n.told) >= most {
		return
	}
	if n.told == nil {
		n.told = map[string]bool{}
	}
	n.told[what] = true
	n.o.Log.WithField("what", what).Warn(why)
}

// filterIsLate says whether the guest has another packet filter than it should, as far
// as the host can tell after an attempt that failed with err.
func (n *Network) filterIsLate(err error) bool {
	if err == nil || errors.Is(err, errNoCard) {
		return false
	}
	if errors.Is(err, errUncarried) || n.cut {
		return true
	}
	generation, gerr := nftables.Generation()
	return gerr != nil || generation != n.generation
}

// cutOff takes the guest off its network, or lets it back: what passes a filter by
// that the administrator has just put up must not go out meanwhile.
func (n *Network) cutOff(cut bool) error {
	if n.cut == cut {
		return nil
	}
	var errs []error
	for _, j := range n.joined {
		errs = append(errs, j.links.Cut(cut))
	}
	n.cut = cut
	return errors.Join(errs...)
}

// freeTap is one that is joined with nothing, before and from now on.
func (n *Network) freeTap(next map[int]*joint) *network.Tap {
	for _, t := range n.taps {
		uses := func(j *joint) bool { return j.tap == t }
		if !slices.ContainsFunc(slices.Collect(maps.Values(n.joined)), uses) &&
			!slices.ContainsFunc(slices.Collect(maps.Values(next)), uses) {
			return t
		}
	}
	return nil
}

func undo(joints []*joint) error {
	var errs []error
	for _, j := range joints {
		errs = append(errs, j.links.Undo())
	}
	return errors.Join(errs...)
}

func (n *Network) noteSkipped(skipped []network.Skipped) {
	for _, skip := range skipped {
		if !skip.Expected {
			n.tellOnce(skip.Name+": "+skip.Reason, "interface left out of the guest")
		}
	}
}

// settleTime is how long the namespace has to be left alone before the guest
// learns of a change: an engine makes an interface in several steps, and half of
// one is of no use.
const settleTime = 100 * time.Millisecond

func (n *Network) follow(changes <-chan struct{}) {
	for range changes {
		n.unsettled.Store(true)
		for settled := false; !settled; {
			select {
			case <-changes:
				n.unsettled.Store(true) // Refresh may have settled what was before
			case <-time.After(settleTime):
				settled = true
			}
		}
		n.rejoin()
	}
}

// isStale says whether the namespace is another than the guest was told of. It takes mu.
func (n *Network) isStale() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.followed {
		return false // before Follow
	}
	found, _, err := network.Scan()
	if err != nil {
		return true // and then it is told why
	}
	generation, err := nftables.Generation()
	return err != nil || generation != n.generation || !reflect.DeepEqual(found, n.found)
}

// rejoin logs what fails: nobody has asked for it. It takes mu.
func (n *Network) rejoin() {
	n.mu.Lock()
	changed := !n.left.Load() && n.rejoinLocked()
	n.mu.Unlock()
	if changed {
		n.o.Changed()
	}
}

// rejoinLocked says whether Problem says something else now.
func (n *Network) rejoinLocked() (changed bool) {
	n.unsettled.Store(false) // what changes from here on sets it again
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	err := n.join(ctx)
	late := n.filterIsLate(err)
	if cerr := n.cutOff(late); cerr != nil {
		n.o.Log.WithError(cerr).Error("cut the guest off its network")
	}
	if err == nil {
		err = n.relayNames(ctx)
	}
	return n.noteProblem(err, late)
}

// noteProblem logs what the container lacks from now on, if that is something else than
// before.
func (n *Network) noteProblem(err error, cut bool) (changed bool) {
	problem := ""
	if err != nil {
		problem = err.Error()
		if cut {
			problem = "the container is cut off its network: " + problem
		}
	}
	n.problemMu.Lock()
	changed = problem != n.problem
	n.problem = problem
	n.problemMu.Unlock()
	switch {
	case !changed:
	case problem != "":
		n.o.Log.Error(problem)
	default:
		n.o.Log.Info("the guest's network is again that of the network namespace")
	}
	return changed
}
