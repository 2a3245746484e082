//go:build integration

package integration

import (
	"strings"
	"time"
)

// madMode is one kind of mad guest.
type madMode struct {
	// name is what the guest is told: "point:how", several separated by commas.
	name string
	// early: the guest is told on the kernel's command line. Others are told when the container
	// is created.
	early   bool
	silence time.Duration // boot_timeout, for a guest that create waits for
	// fails and works are verbs that must fail or work. Of the others nothing is expected, as
	// of those that come after the end of the guest.
	fails, works []string
	skips        []string // verbs that a guest may delay for ever, such as exec
	says         string   // text of the first error
	exit         *int     // exit code of the container
	with         func(*env) []specOption
	logs         string // what the supervisor writes to its log
	terminal     bool   // the container has one
}

func (m madMode) options(e *env) []specOption {
	if m.with == nil {
		return nil
	}
	return m.with(e)
}

func countModes() int {
	n := len(madSilent)
	for _, list := range [][]madMode{madModes, madNever} {
		for _, m := range list {
			n += 1 + strings.Count(m.name, ",")
		}
	}
	return n
}

func code(n int) *int { return &n }

func verbs(list string) []string { return strings.Fields(list) }

// early returns a mode that acts before Create, which then fails.
func early(name, says string) madMode {
	return madMode{name: name, early: true, fails: verbs("create"), says: says}
}

const all = "start state exec pause resume update events ps list kill"

var madModes = []madMode{
	// A guest that does nothing wrong, with which the others are compared.
	{name: "none", works: verbs("create " + all), exit: code(137)},

	// Before the greeting.
	early("boot:panic", "panic"), early("boot:reboot", "ended"), early("boot:poweroff", ""),
	early("greeting:garbage", "greeting"), early("greeting:long", "greeting"), early("greeting:early", "greeting"),
	early("greeting:version", "999"), early("greeting:build", "another"),

	// The channel below the streams.
	early("channel:garbage", ""), early("channel:version", "protocol"), early("channel:kind", ""), early("channel:ping", "ping"), early("channel:pong", "ping"),
	early("channel:open", "opened a stream"), early("channel:overrun", ""),
	early("channel:reset", ""),

	// The control stream.
	early("control:controls", "refused"), early("control:escapes", "refused"), early("control:cut", ""),
	early("control:close", ""), early("control:more", ""),
	early("hello:error", "mad"), early("hello:long", "mad"), early("hello:garbage", ""), early("hello:nonsense", ""),
	early("hello:huge", ""), early("hello:request", ""), early("hello:data", ""), early("hello:hangup", ""),
	early("hello:close", ""), early("hello:panic", "panic"), early("hello:poweroff", ""), early("hello:exit", "panic"),
	{name: "hello:absurd", early: true, works: verbs("create " + all)},
	{name: "hello:empty", early: true, works: verbs("create " + all)},
	{name: "hello:twice", early: true},

	// Create and the container's streams.
	{name: "create:error", fails: verbs("create"), says: "mad"},
	{name: "create:long", fails: verbs("create"), says: "mad"},
	{name: "create:garbage", fails: verbs("create")},
	{name: "create:huge", fails: verbs("create")},
	{name: "create:panic", fails: verbs("create"), says: "panic"},
	{name: "create:poweroff", fails: verbs("create")},
	{name: "create:absurd", works: verbs("create " + all)},
	{name: "create:empty", works: verbs("create " + all)},
	{name: "ack:controls", fails: verbs("create"), says: "refused"},
	{name: "ack:cut", fails: verbs("create")},
	{name: "ack:close", fails: verbs("create")},
	{name: "ack:more"},

	// Start.
	{name: "start:error", works: verbs("create"), fails: verbs("start"), says: "mad"},
	{name: "start:reboot", works: verbs("create"), fails: verbs("start")},
	{name: "start:hangup", works: verbs("create"), fails: verbs("start")},
	{name: "start:stranger", works: verbs("create"), fails: verbs("start")},
	{name: "start:storm", works: verbs("create")},

	{name: "network:error", with: withMadNetwork, works: verbs("create"), fails: verbs("start"), says: "mad"},
	{name: "network:garbage", with: withMadNetwork, works: verbs("create"), fails: verbs("start")},
	{name: "network:empty", with: withMadNetwork, works: verbs("create " + all), exit: code(137)},
	{name: "resize:error", terminal: true, works: verbs("create " + all), exit: code(137), logs: "follow window size"},
	{name: "resize:huge", terminal: true},

	// Calls of a running container. Those that end nothing share a guest.
	{
		name:  "exec:error,pause:error,resume:error,update:error,stats:error",
		works: verbs("create start state ps list kill"), fails: verbs("exec pause resume update events"), exit: code(137),
	},
	{
		name:  "exec:long,pause:long,update:long,stats:long",
		works: verbs("create start state ps list kill"), fails: verbs("exec pause update events"), exit: code(137),
	},
	{name: "stats:absurd,exec:absurd", works: verbs("create " + all), exit: code(137)},
	{name: "stats:empty,exec:empty,pause:empty,resume:empty,update:empty", works: verbs("create start state ps list kill"), exit: code(137)},
	{name: "stats:garbage", works: verbs("create start exec kill"), fails: verbs("events")},
	{name: "pause:twice", works: verbs("create start")},
	{name: "update:huge", works: verbs("create start exec"), fails: verbs("update")},
	{name: "exec:panic", works: verbs("create start"), fails: verbs("exec")},
	{name: "pause:request", works: verbs("create start exec"), fails: verbs("pause")},
	{name: "execack:controls", works: verbs("create start pause kill"), fails: verbs("exec"), says: "refused", exit: code(137)},
	{name: "execack:cut", works: verbs("create start"), fails: verbs("exec")},
	{name: "execack:close", works: verbs("create start"), fails: verbs("exec")},

	// The end of the container.
	{name: "wait:absurd", works: verbs("create"), skips: verbs("exec"), exit: code(42)},
	{name: "wait:empty", works: verbs("create"), skips: verbs("exec"), exit: code(0)},
	{name: "wait:error", works: verbs("create"), skips: verbs("exec"), exit: code(137)},
	{name: "wait:garbage", works: verbs("create"), skips: verbs("exec"), exit: code(137)},
	{name: "wait:huge", works: verbs("create"), skips: verbs("exec"), exit: code(137)},
	{name: "wait:twice", skips: verbs("exec")},
	{name: "kill:error", works: verbs("create " + all)},
	{name: "kill:panic", works: verbs("create " + strings.TrimSuffix(all, " kill"))},
	{name: "kill:close", works: verbs("create " + strings.TrimSuffix(all, " kill"))},
	{name: "guest:panic", works: verbs("create")},
	{name: "guest:poweroff", works: verbs("create")},

	// Floods.
	{name: "stdout:flood", works: verbs("create start state kill")},
	{name: "stdout:exit", works: verbs("create")},
	{name: "late:replies"},
	{name: "late:channel"},
	{name: "stdout:early", works: verbs("create " + all)},
	{name: "console:flood", works: verbs("create start state kill")},
	{name: "awaitoom:flood", works: verbs("create start state kill")},
	{name: "awaitoom:absurd", works: verbs("create start state kill")},
	{name: "awaitoom:garbage", works: verbs("create start state kill")},
	{name: "replies:unasked", works: verbs("create")},
	{name: "replies:flood", works: verbs("create")},
	{name: "replies:announce", works: verbs("create")},
	{name: "notify:flood", with: withMadNotify, works: verbs("create start state kill")},
	{name: "notify:big", with: withMadNotify, works: verbs("create start state kill")},
	{name: "notify:long", with: withMadNotify, logs: "relay notifications", works: verbs("create start state kill")},
	{name: "notify:empty", with: withMadNotify, logs: "relay notifications", works: verbs("create start state kill")},
	{name: "notify:cut", with: withMadNotify, logs: "relay notifications", works: verbs("create start state kill")},
	{name: "names:flood", with: withMadNames, works: verbs("create start state kill")},
	{name: "names:big", with: withMadNames, works: verbs("create start state kill")},
	{name: "names:same", with: withMadNames, works: verbs("create start state kill")},
	{name: "names:pointers", with: withMadNames, works: verbs("create start state kill")},
	{name: "names:malformed", with: withMadNames, logs: "relay names", works: verbs("create start state kill")},
	{name: "names:cut", with: withMadNames, logs: "relay names", works: verbs("create start state kill")},
}

// madNever are modes that each cost a deadline of husk's, 30 s.
var madNever = []madMode{
	{name: "start:never", works: verbs("create"), fails: verbs("start")},
	{name: "network:never", with: withMadNetwork, works: verbs("create"), fails: verbs("start")},
	{name: "resize:never", terminal: true, works: verbs("create start"), logs: "follow window size"},
	{name: "start:mute", works: verbs("create"), fails: verbs("start")},
	{name: "exec:never", works: verbs("create start"), fails: verbs("exec")},
	{name: "execack:never", works: verbs("create start"), fails: verbs("exec")},
	{name: "pause:never", works: verbs("create start"), fails: verbs("pause")},
	{name: "update:never", works: verbs("create start"), fails: verbs("update")},
	{name: "stats:never", works: verbs("create start"), fails: verbs("events")},
	{name: "stats:mute", works: verbs("create start"), fails: verbs("events")},
	{name: "kill:never", works: verbs("create start kill"), exit: code(137)},
	{name: "kill:deaf", works: verbs("create start kill"), exit: code(137)},
	{name: "wait:never", skips: verbs("exec"), works: verbs("create start kill"), exit: code(137)},
	{name: "guest:halt", works: verbs("create"), skips: verbs("exec")},
	{name: "channel:stall", works: verbs("create"), skips: verbs("exec")},
}

// madSilent are early modes that end only by boot_timeout.
var madSilent = []string{
	"boot:halt", "greeting:never", "greeting:half", "greeting:close", "console:flood,greeting:never",
	"channel:unknown", "channel:window", "channel:cut", "channel:mute", "channel:stall",
	"channel:huge", "channel:goaway", "channel:close",
	"control:never", "control:stall", "hello:never", "hello:cut", "hello:mute",
	"create:never", "create:mute", "create:replay", "ack:never",
}
