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

// Network connects the network namespace of the process that has opened it with the guest:
// which interface is joined with which tap, what the guest was told, and the relay to an
// engine's resolver. All methods may be called by many goroutines at once.
type Network struct {
	o          NetworkOptions
	policy     *policy
	resolvConf *os.File       // nil: none is mounted
	taps       []*network.Tap // not changed after OpenTaps
	guest      guest          // set by Start

	// unsettled: something has changed that the guest does not know yet.
	unsettled atomic.Bool
	left      atomic.Bool // Leave was called

	// mu is held while the namespace is read and the guest is told, up to callTimeout, because
	// what the guest has must come from one reading. It guards the fields below. A caller that
	// waits for it may hold a lock of its own, so no function of the caller is called with mu
	// held: see NetworkOptions.Changed.
	mu     sync.Mutex
	joined map[int]*joinedInterface // by the interface's index
	given  *protocol.NetworkRequest
	// found and generation belong to the reading that given was made of. isStale compares them.
	found        []network.Interface
	generation   uint32
	told         map[string]bool // what was logged already
	cut          bool            // the taps are down because the guest does not have the packet filter that it should
	namesRelayed bool
	changes      <-chan struct{} // changes of the namespace, from the first Wire on
	followed     bool            // Follow was called: the guest gets every change of the namespace

	// problemMu guards only problem, so that a reader need not wait for the guest. It may be
	// locked with mu held, and not the other way round.
	problemMu sync.Mutex
	problem   string // empty: none
}

// NetworkOptions describe the container's network.
type NetworkOptions struct {
	ContainerID string // the container whose network namespace it is
	Walls       Walls
	// Sysctls are network settings of config.json. They have precedence over those of the
	// namespace.
	Sysctls map[string]string
	// New: the namespace was made for the container and ends with it.
	New bool
	// ResolvConf is the host's path of the container's /etc/resolv.conf; empty: it is no file
	// of the host.
	ResolvConf string
	Log        *logrus.Logger
	// Changed is called when the result of Problem has changed. No lock is held then.
	Changed func()
}

// guest is the part of Machine that Network needs.
type guest interface {
	Agent() protocol.AgentService
	Stream(ctx context.Context, header protocol.StreamHeader) (client.Stream, error)
}

// OpenNetwork opens what is needed of the host. Call it in the container's network namespace,
// while paths can be trusted.
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

// Settle waits until it is known which settings a new namespace has. Afterwards the process may
// leave the host's tree.
func (n *Network) Settle() error { return n.policy.settle() }

// OpenTaps makes a tap for each interface that the namespace has now, and at least least, for
// interfaces that engines add between create and start or later.
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
		// Two machines with one address on one interface would both not work.
		return errors.New("the network namespace has another container's virtual machine on it: containers that share one network (--network container:ID, pods) are not supported yet")
	}
	if n.taps, err = network.OpenTaps(max(least, len(found))); err != nil {
		return err
	}
	if !n.o.New {
		return nil
	}
	// They end with the network namespace, where that goes with the container. In a
	// namespace of somebody else's they would be left.
	for _, t := range n.taps {
		if err := t.Persist(); err != nil {
			return err
		}
	}
	return nil
}

func hasTap(skipped []network.Skipped) bool {
	return slices.ContainsFunc(skipped, func(s network.Skipped) bool { return s.Tap })
}

// CloseTaps closes the taps. Call it when the vmm has its own descriptors; then a tap ends with
// the vmm.
func (n *Network) CloseTaps() { network.CloseTaps(n.taps) }

// TapIndexes returns the interface indexes of the taps, which network.Leave needs.
func (n *Network) TapIndexes() []int {
	var all []int
	for _, t := range n.taps {
		all = append(all, t.Index)
	}
	return all
}

// Needs says which rights the process must keep: to use the network at all, and to change its
// interfaces.
func (n *Network) Needs() (speaks, changes bool) {
	return len(n.taps) > 0 || n.resolvConf != nil, len(n.taps) > 0
}

// Problem returns what the container lacks of its network now; empty: nothing.
func (n *Network) Problem() string {
	n.problemMu.Lock()
	defer n.problemMu.Unlock()
	return n.problem
}

// Wire gives the guest the interfaces, packet filter and settings that the namespace has now,
// and the resolver. Call it just before the container's process runs. After an error it may be
// called again.
func (n *Network) Wire(ctx context.Context) (err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.taps) > 0 && n.changes == nil {
		// The watch begins before the first reading, so that no change is missed.
		if n.changes, err = network.Watch(context.Background()); err != nil { //nolint:contextcheck // it outlives the call
			return err
		}
	}
	if err := n.join(ctx); err != nil {
		return err
	}
	return n.relayNames(ctx)
}

// Follow makes the guest's network follow changes of the namespace from now on, as when engines
// connect the running container to networks.
func (n *Network) Follow() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.changes == nil || n.followed {
		return
	}
	n.followed = true
	go n.follow(n.changes)
}

// Refresh gives the guest changes of the namespace at once, where Follow waits until no more
// changes come. A process that is started after the container was connected must find the
// network. Refresh looks itself, because on a busy machine the watch may not have reported yet
// what an engine has done.
func (n *Network) Refresh() {
	if len(n.taps) > 0 && (n.unsettled.Load() || n.isStale()) {
		n.rejoin()
	}
}

// Leave stops changing the guest's network, because its container has ended.
func (n *Network) Leave() { n.left.Store(true) }

type joinedInterface struct {
	tap   *network.Tap
	links *network.Links
}

// errNoCard is returned for an interface for which the guest has no network card.
var errNoCard = errors.New("no network card of the guest is free")

// join gives the guest the interfaces and the packet filter of the network namespace. If the
// guest refuses them, what is new on the host is undone. The caller holds mu, as for all
// functions below except those that say that they lock it.
func (n *Network) join(ctx context.Context) error {
	if len(n.taps) == 0 {
		return nil
	}
	// It is read before everything else, so that a change meanwhile is noticed later.
	generation, err := nftables.Generation()
	if err != nil {
		return err
	}
	found, skipped, err := network.Scan()
	if err != nil {
		return err
	}
	for _, f := range found {
		n.o.Log.Debugf("network: interface %s (%s), %s, addresses %v, %d routes", f.Name, f.Kind, f.MAC, f.Addresses, len(f.Routes))
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

// joinFound joins each interface with a tap, and adds it to the request for the guest. fresh
// are those that were not joined before; it is valid also with an error.
func (n *Network) joinFound(found []network.Interface, req *protocol.NetworkRequest) (joined map[int]*joinedInterface, fresh []*joinedInterface, missing, err error) {
	joined = map[int]*joinedInterface{}
	for _, f := range found {
		j := n.joined[f.Index]
		if j == nil {
			tap := n.freeTap(joined)
			if tap == nil {
				missing = fmt.Errorf("join network: interface %s: %w: create the container with the annotation %s or the setting nics of %d or more",
					f.Name, errNoCard, specconv.AnnotationNICs, len(found))
				continue
			}
			j = &joinedInterface{tap: tap}
		}
		joined[f.Index] = j
		req.Interfaces = append(req.Interfaces, f.ToProto(j.tap.MAC))
		antiSpoof := network.AntiSpoofOf(&f, found, n.o.Walls.Spoofing)
		if j.links == nil {
			if j.links, err = network.Join(network.Pair{Interface: f, Tap: j.tap, AntiSpoof: antiSpoof}); err != nil {
				return nil, fresh, nil, err
			}
			fresh = append(fresh, j)
		} else if err := j.links.Restrict(j.tap, antiSpoof); err != nil {
			return nil, fresh, nil, err
		}
	}
	return joined, fresh, missing, nil
}

// tellGuest sends the guest what is new for it.
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
	const most = 256 // the guest has chosen some of them
	if n.told[what] || len(n.told) >= most {
		return
	}
	if n.told == nil {
		n.told = map[string]bool{}
	}
	n.told[what] = true
	n.o.Log.WithField("what", what).Warn(why)
}

// filterIsLate says whether the guest has another packet filter than it should, as far as the
// host can know after an attempt that has failed with err.
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

// cutOff disconnects the guest from its network, or connects it again. While the guest does not
// have a filter that the administrator has just made, nothing may pass.
func (n *Network) cutOff(cut bool) error {
	if n.cut == cut {
		return nil
	}
	var errs []error
	for _, j := range n.joined {
		errs = append(errs, j.links.Cut(cut))
	}
	err := errors.Join(errs...)
	if err == nil {
		n.cut = cut // else the next change of the network tries again
	}
	return err
}

// freeTap returns a tap that is not joined now and not in next.
func (n *Network) freeTap(next map[int]*joinedInterface) *network.Tap {
	for _, t := range n.taps {
		uses := func(j *joinedInterface) bool { return j.tap == t }
		if !slices.ContainsFunc(slices.Collect(maps.Values(n.joined)), uses) &&
			!slices.ContainsFunc(slices.Collect(maps.Values(next)), uses) {
			return t
		}
	}
	return nil
}

func undo(interfaces []*joinedInterface) error {
	var errs []error
	for _, j := range interfaces {
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

// settleTime is how long the namespace must be unchanged before the guest gets a change. An
// engine makes an interface in several steps, and half of one is of no use.
const settleTime = 100 * time.Millisecond

func (n *Network) follow(changes <-chan struct{}) {
	for range changes {
		n.unsettled.Store(true)
		for settled := false; !settled; {
			select {
			case <-changes:
				n.unsettled.Store(true) // Refresh may have handled the changes before
			case <-time.After(settleTime):
				settled = true
			}
		}
		n.rejoin()
	}
}

// isStale says whether the namespace has changed since the guest was told. It locks mu.
func (n *Network) isStale() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.followed {
		return false // before Follow
	}
	found, _, err := network.Scan()
	if err != nil {
		return true // then rejoin reports the reason
	}
	generation, err := nftables.Generation()
	return err != nil || generation != n.generation || !reflect.DeepEqual(found, n.found)
}

// rejoin logs errors, because it has no caller that asked for it. It locks mu.
func (n *Network) rejoin() {
	n.mu.Lock()
	changed := !n.left.Load() && n.rejoinLocked()
	n.mu.Unlock()
	if changed {
		n.o.Changed()
	}
}

// rejoinLocked says whether the result of Problem has changed.
func (n *Network) rejoinLocked() (changed bool) {
	n.unsettled.Store(false) // changes from here on set it again
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

// noteProblem logs what the container lacks from now on, if that differs from before.
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
