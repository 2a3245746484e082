package supervisor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/host/specconv"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/linux/nftables"
	"github.com/huskvm/husk/protocol"
)

// openTaps makes a tap for each interface that the namespace has by now, and n
// at least, for those that engines put there between create and start, or later.
func openTaps(n int) ([]*network.Tap, error) {
	found, skipped, err := network.Scan()
	if err != nil {
		return nil, err
	}
	if hasTap(skipped) {
		if err := network.RemoveUnheldTaps(); err != nil {
			return nil, err
		}
		if found, skipped, err = network.Scan(); err != nil {
			return nil, err
		}
	}
	if hasTap(skipped) {
		// Two machines with one address on one interface: neither would work.
		return nil, errors.New("the network namespace has another container's virtual machine on it: containers that share one network (--network container:ID, pods) are not supported yet")
	}
	return network.OpenTaps(max(n, len(found)))
}

func hasTap(skipped []network.Skipped) bool {
	return slices.ContainsFunc(skipped, func(s network.Skipped) bool { return s.Tap })
}

// keepTaps lets the taps end with the network namespace, where that goes with the
// container. In a namespace of somebody else's they would be left.
func (s *supervisor) keepTaps() error {
	if !s.hasNewNetwork() {
		return nil
	}
	for _, t := range s.taps {
		if err := t.Persist(); err != nil {
			return err
		}
	}
	return nil
}

// hasNewNetwork says whether the network namespace has been made for the container.
func (s *supervisor) hasNewNetwork() bool {
	return slices.ContainsFunc(s.boot.Plan.Shadow.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.NetworkNamespace && ns.Path == ""
	})
}

// wiring is which interface of the container's network namespace each tap is
// joined with, and what else of it the guest has. The verbs' lock guards it.
type wiring struct {
	policy *policy
	joined map[int]*joint // by the interface's index
	given  *protocol.NetworkRequest
	// found and generation are of the look that given is made of, for stale.
	found      []network.Interface
	generation uint32

	told map[string]bool // what the user was told of already
	// cut: the taps are down, for the guest has not the packet filter that it should.
	cut     bool
	problem string // why, or which interface the guest has no card for; empty: nothing

	// followed is set at start: from then on the guest has what the namespace has.
	followed bool
	// unsettled: something has changed that the guest does not know of yet. It
	// needs no lock.
	unsettled atomic.Bool
}

type joint struct {
	tap   *network.Tap
	links *network.Links
}

// errNoCard is for an interface more than the guest has network cards.
var errNoCard = errors.New("no network card of the guest is free")

// joinNetwork makes the guest's interfaces and its packet filter those of the
// container's network namespace. It runs at start, because some engines wire the
// namespace between create and start, and when something has changed there. Where the
// guest refuses, what is new on the host's side is undone.
func (s *supervisor) joinNetwork(ctx context.Context) error {
	w := &s.wiring
	if len(s.taps) == 0 {
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
	s.noteSkipped(skipped)
	carried, err := w.policy.read(found)
	if err != nil {
		return err
	}
	if len(carried.uncarried) > 0 && !s.boot.Walls.AcceptUncarried {
		return refusal(carried.uncarried)
	}
	for _, what := range carried.uncarried {
		s.tellOnce(what, "a packet filter of the network namespace does not hold in the guest, as was accepted")
	}
	req := &protocol.NetworkRequest{ContainerId: s.container.ID, Sysctls: carried.sysctls, Nftables: carried.rules}
	joined, fresh, missing, err := s.joinFound(found, req)
	if err != nil {
		return errors.Join(err, undo(fresh))
	}
	if err := s.tellGuest(ctx, req); err != nil {
		if uerr := undo(fresh); uerr != nil {
			s.log.WithError(uerr).Warn("undo network")
		}
		return fmt.Errorf("join network: %w", err)
	}
	w.found, w.generation = found, generation
	for index, j := range w.joined {
		if joined[index] == nil {
			err = errors.Join(err, j.links.Undo())
		}
	}
	w.joined = joined
	return errors.Join(missing, err)
}

// joinFound joins each interface with a tap, and adds it to what the guest is told.
// fresh are those that were not joined before, also with an error.
func (s *supervisor) joinFound(found []network.Interface, req *protocol.NetworkRequest) (joined map[int]*joint, fresh []*joint, missing, err error) {
	joined = map[int]*joint{}
	for _, f := range found {
		j := s.wiring.joined[f.Index]
		if j == nil {
			tap := s.freeTap(joined)
			if tap == nil {
				missing = fmt.Errorf("join network: interface %s: %w: create the container with the annotation %s or the setting nics of %d or more",
					f.Name, errNoCard, specconv.AnnotationNICs, len(found))
				continue
			}
			j = &joint{tap: tap}
		}
		joined[f.Index] = j
		req.Interfaces = append(req.Interfaces, f.ToProto(j.tap.MAC))
		sources := network.SourcesOf(&f, found, s.boot.Walls.Forging)
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
func (s *supervisor) tellGuest(ctx context.Context, req *protocol.NetworkRequest) error {
	given := s.wiring.given
	if given == nil {
		given = &protocol.NetworkRequest{ContainerId: req.ContainerId}
	}
	if proto.Equal(req, given) {
		return nil
	}
	resp, err := s.agent.Control().Network(ctx, req)
	if err != nil && len(req.Nftables) > 0 && s.boot.Walls.AcceptUncarried {
		s.tellOnce(err.Error(), "the guest does not take the network namespace's packet filter, as was accepted")
		req.Nftables = nil
		resp, err = s.agent.Control().Network(ctx, req)
	}
	if err != nil {
		return err
	}
	for _, name := range resp.Unset[:min(len(resp.Unset), len(req.Sysctls))] {
		s.tellOnce(fmt.Sprintf("%.200q", name), "the guest's kernel does not take a setting of the network namespace")
	}
	s.wiring.given = req
	return nil
}

func (s *supervisor) tellOnce(what, why string) {
	const most = 256 // the guest has its say in some
	if s.wiring.told[what] || len(s.wiring.told) >= most {
		return
	}
	if s.wiring.told == nil {
		s.wiring.told = map[string]bool{}
	}
	s.wiring.told[what] = true
	s.log.WithField("what", what).Warn(why)
}

// filterIsLate says whether the guest has another packet filter than it should, as far
// as the host can tell after an attempt that failed with err.
func (w *wiring) filterIsLate(err error) bool {
	if err == nil || errors.Is(err, errNoCard) {
		return false
	}
	if errors.Is(err, errUncarried) || w.cut {
		return true
	}
	generation, gerr := nftables.Generation()
	return gerr != nil || generation != w.generation
}

// cutOff takes the guest off its network, or lets it back: what passes a filter by
// that the administrator has just put up must not go out meanwhile.
func (s *supervisor) cutOff(cut bool) error {
	if s.wiring.cut == cut {
		return nil
	}
	var errs []error
	for _, j := range s.wiring.joined {
		errs = append(errs, j.links.Cut(cut))
	}
	s.wiring.cut = cut
	return errors.Join(errs...)
}

// freeTap is one that is joined with nothing, before and from now on.
func (s *supervisor) freeTap(next map[int]*joint) *network.Tap {
	for _, t := range s.taps {
		uses := func(j *joint) bool { return j.tap == t }
		if !slices.ContainsFunc(slices.Collect(maps.Values(s.wiring.joined)), uses) &&
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

func (s *supervisor) noteSkipped(skipped []network.Skipped) {
	for _, skip := range skipped {
		if !skip.Expected {
			s.tellOnce(skip.Name+": "+skip.Reason, "interface left out of the guest")
		}
	}
}

// settleTime is how long the namespace has to be left alone before the guest
// learns of a change: an engine makes an interface in several steps, and half of
// one is of no use.
const settleTime = 100 * time.Millisecond

// followNetwork keeps the guest's interfaces those of the namespace as engines
// connect the running container to networks and disconnect it.
func (s *supervisor) followNetwork(changed <-chan struct{}) {
	for range changed {
		s.wiring.unsettled.Store(true)
		for settled := false; !settled; {
			select {
			case <-changed:
				s.wiring.unsettled.Store(true) // an exec may have settled what was before
			case <-time.After(settleTime):
				settled = true
			}
		}
		s.rejoinNetwork()
	}
}

// settleNetwork does not wait for the namespace to be left alone: a process that is
// started after the container has been connected finds the network. It looks itself, for
// on a busy machine the watch may not have told yet of what an engine has done already.
func (s *supervisor) settleNetwork() {
	if len(s.taps) > 0 && (s.wiring.unsettled.Load() || s.networkIsStale()) {
		s.rejoinNetwork()
	}
}

// networkIsStale says whether the namespace is another than the guest was told of.
func (s *supervisor) networkIsStale() bool {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if !s.wiring.followed {
		return false // before start
	}
	found, _, err := network.Scan()
	if err != nil {
		return true // and then it is told why
	}
	generation, err := nftables.Generation()
	return err != nil || generation != s.wiring.generation || !reflect.DeepEqual(found, s.wiring.found)
}

// rejoinNetwork logs what fails: nobody has asked for it.
func (s *supervisor) rejoinNetwork() {
	s.verbs.Lock()
	defer s.verbs.Unlock()
	if s.status() == state.Stopped {
		return
	}
	s.wiring.unsettled.Store(false) // what changes from here on sets it again
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	err := s.joinNetwork(ctx)
	late := s.wiring.filterIsLate(err)
	if cerr := s.cutOff(late); cerr != nil {
		s.log.WithError(cerr).Error("cut the guest off its network")
	}
	if err == nil {
		err = s.relayNames(ctx)
	}
	s.noteProblem(err, late)
}

// noteProblem tells of what the container lacks where an operator looks: in the log,
// and as long as it lasts in the container's state.
func (s *supervisor) noteProblem(err error, cut bool) {
	problem := ""
	if err != nil {
		problem = err.Error()
		if cut {
			problem = "the container is cut off its network: " + problem
		}
	}
	if problem == s.wiring.problem {
		return
	}
	s.wiring.problem = problem
	if problem != "" {
		s.log.Error(problem)
	} else {
		s.log.Info("the guest's network is again that of the network namespace")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := *s.container
	c.NetworkProblem = problem
	if err := s.dir.Save(&c); err != nil {
		s.log.WithError(err).Warn("save state")
		return
	}
	s.container.NetworkProblem = problem
}
