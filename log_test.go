package main

import (
	"bytes"
	"testing"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// TestTTRPCIsSilent: lines of ttrpc would appear on the container's stderr.
func TestTTRPCIsSilent(t *testing.T) {
	std := logrus.StandardLogger()
	was := std.Out
	defer std.SetOutput(was)
	var b bytes.Buffer
	std.SetOutput(&b)
	log.G(t.Context()).Error("ttrpc: received message on inactive stream")
	if b.Len() > 0 {
		t.Errorf("a library's line is written: %s", b.String())
	}
}
