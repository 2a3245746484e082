package main

import (
	"context"

	"github.com/huskvm/husk/protocol"
)

// AwaitOOM answers when the kernel has killed a process of the container because memory was
// short.
func (a *agent) AwaitOOM(ctx context.Context, r *protocol.AwaitOOMRequest) (*protocol.AwaitOOMResponse, error) {
	c, err := a.container(r.ContainerId)
	if err != nil {
		return nil, err
	}
	kills, err := c.c.AwaitOOM(ctx, r.Seen)
	if err != nil {
		return nil, err
	}
	return &protocol.AwaitOOMResponse{Kills: kills}, nil
}
