package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/huskvm/husk/host/network"
	"github.com/huskvm/husk/protocol"
)

// maxResolvConf bounds what is read of a resolv.conf, in bytes.
const maxResolvConf = 64 << 10

// openResolvConf opens the file that is mounted on /etc/resolv.conf. Engines write it again, in
// place, when they connect the container to another network. It returns nil for an empty path.
func openResolvConf(hostPath string) (*os.File, error) {
	if hostPath == "" {
		return nil, nil
	}
	f, err := os.Open(hostPath)
	if err != nil {
		return nil, fmt.Errorf("open resolv.conf: %w", err)
	}
	return f, nil
}

// relayNames lets the guest ask the engine's resolver as soon as the container's resolv.conf
// names it. The caller holds mu.
func (n *Network) relayNames(ctx context.Context) error {
	if n.namesRelayed {
		return n.hearAnswers()
	}
	if n.resolvConf == nil {
		return nil
	}
	text := make([]byte, maxResolvConf)
	size, err := n.resolvConf.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read resolv.conf: %w", err)
	}
	if !network.UsesEngineResolver(string(text[:size])) {
		return nil
	}
	stream, err := n.guest.Stream(ctx, protocol.StreamHeader{Kind: protocol.StreamNames, ContainerID: n.o.ContainerID})
	if err != nil {
		return fmt.Errorf("relay names to the resolver at %s: %w", protocol.ResolverAddress, err)
	}
	n.namesRelayed = true
	go func() { //nolint:contextcheck // it outlives the call
		defer stream.Close()
		if err := network.RelayNames(context.Background(), stream); err != nil {
			n.o.Log.WithError(err).Warn("relay names")
		}
	}()
	return n.hearAnswers()
}

// hearAnswers makes it possible for the engine's resolver to ask other name servers.
func (n *Network) hearAnswers() error {
	if err := n.policy.reservePorts(); err != nil {
		return err
	}
	for _, j := range n.joined {
		if err := j.links.HearAnswers(); err != nil {
			return err
		}
	}
	return nil
}
