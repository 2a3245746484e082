package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

const (
	afVsock = 40 // package syscall does not have it
	// agentPort is the port on which an agent of husk waits for its host.
	agentPort = 1024
	// knockers is the number of goroutines that knock at the same time.
	knockers = 4
)

// knock connects to the vsock port of agents as a stranger, sends what a stranger might send,
// and counts the results. Its arguments are the cids of guests. Without arguments it goes on
// until the end of its input, with the cids that it finds in command lines. KNOCK_SECRET may
// have a secret in hexadecimal digits.
func knock(args []string) error {
	var cids []uint32
	for _, arg := range args {
		cid, err := strconv.ParseUint(arg, 10, 32)
		if err != nil {
			return err
		}
		cids = append(cids, uint32(cid))
	}
	secret, err := hex.DecodeString(os.Getenv("KNOCK_SECRET"))
	if err != nil {
		return err
	}
	t := tally{counts: map[string]int{}}
	if len(cids) > 0 {
		for _, cid := range cids {
			knockAt(cid, secret, &t)
		}
	} else {
		flood := make(chan struct{})
		var all sync.WaitGroup
		for range knockers {
			all.Add(1)
			go func() {
				defer all.Done()
				knockUntil(flood, secret, &t)
			}()
		}
		fmt.Println("knocking")
		// Waits for the end of the input.
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(flood)
		all.Wait()
	}
	t.print()
	return nil
}

type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (t *tally) add(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[what]++
}

func (t *tally) print() {
	var names []string
	for name := range t.counts {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		fmt.Println(t.counts[name], name)
	}
}

func knockUntil(end <-chan struct{}, secret []byte, t *tally) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		default:
		}
		cids := guestsInCommandLines()
		for _, cid := range cids {
			knockAt(cid, secret, t)
		}
		if len(cids) == 0 {
			<-tick.C
		}
	}
}

var guestCID = regexp.MustCompile(`guest-cid=(\d+)`)

// guestsInCommandLines returns the cids of the host's virtual machines, which every user can
// see.
func guestsInCommandLines() []uint32 {
	var cids []uint32
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, _ := os.ReadFile(path)
		if m := guestCID.FindSubmatch(line); m != nil {
			cid, _ := strconv.ParseUint(string(m[1]), 10, 32)
			cids = append(cids, uint32(cid))
		}
	}
	return cids
}

// knockAt sends each message, from any port and from a reserved one.
func knockAt(cid uint32, secret []byte, t *tally) {
	guess := make([]byte, 32)
	_, _ = rand.Read(guess)
	// The header of a control stream, as a host sends it.
	header := []byte{'c', 0, 0, 0}
	says := map[string][]byte{
		"header":  header,
		"garbage": bytes.Repeat([]byte{0xff, 0}, 2048),
		"zeros":   append(make([]byte, 32), header...),
		"guess":   append(guess, header...),
		"short":   guess[:31],
	}
	if len(secret) > 0 {
		says["secret"] = append(append([]byte{}, secret...), header...)
	}
	for name, what := range says {
		for _, reserved := range []bool{false, true} {
			port := "any port"
			if reserved {
				port = "reserved port"
			}
			t.add(name + " from " + port + ": " + say(cid, what, reserved))
		}
	}
}

// say connects, sends what, and returns the result: "answered" if a single byte came back.
func say(cid uint32, what []byte, reserved bool) string {
	fd, err := syscall.Socket(afVsock, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return "socket: " + err.Error()
	}
	defer syscall.Close(fd)
	if reserved {
		err := syscall.EADDRINUSE
		for port := uint32(1023); port > 0 && err == syscall.EADDRINUSE; port-- {
			err = withVsockAddress(syscall.SYS_BIND, fd, ^uint32(0), port)
		}
		if err != 0 {
			return "bind: " + err.Error()
		}
	}
	if err := withVsockAddress(syscall.SYS_CONNECT, fd, cid, agentPort); err != 0 {
		return "connect: " + err.Error()
	}
	limit := syscall.Timeval{Usec: 300_000}
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &limit); err != nil {
		return "setsockopt: " + err.Error()
	}
	if _, err := syscall.Write(fd, what); err != nil {
		return "connected, write: " + err.Error()
	}
	n, err := syscall.Read(fd, make([]byte, 1))
	switch {
	case n > 0:
		return "answered"
	case err != nil:
		return "connected, read: " + err.Error()
	}
	return "connected, end of file"
}

// withVsockAddress calls bind(2) or connect(2) with a sockaddr_vm.
func withVsockAddress(call uintptr, fd int, cid, port uint32) syscall.Errno {
	address := struct {
		family, reserved uint16
		port, cid        uint32
		rest             uint32
	}{family: afVsock, port: port, cid: cid}
	_, _, errno := syscall.Syscall(call, uintptr(fd), uintptr(unsafe.Pointer(&address)), unsafe.Sizeof(address))
	return errno
}
