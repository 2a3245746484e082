package control

import (
	"bufio"
	"io"
	"regexp"
	"strconv"

	"github.com/sirupsen/logrus"

	"github.com/huskvm/husk/host/state"
)

// maxLog is how much of a supervisor's log one verb passes on, in bytes.
const maxLog = 256 << 10

// FollowLog is for a verb with --debug: what the supervisor writes into its own log from
// now on, relay passes on to the verb's, where the user looks, and which outlives the
// container. Without --debug relay does nothing. A supervisor writes what it does only for
// a container that was created with --debug.
func FollowLog(dir *state.Dir) (relay func()) {
	if !logrus.IsLevelEnabled(logrus.DebugLevel) {
		return func() {}
	}
	var seen int64
	if f, err := dir.ReadLog(); err == nil { // there is none before create
		if st, err := f.Stat(); err == nil {
			seen = st.Size()
		}
		f.Close()
	}
	return func() {
		f, err := dir.ReadLog()
		if err != nil {
			return // the container never came so far, or has been deleted
		}
		defer f.Close()
		lines := bufio.NewScanner(io.NewSectionReader(f, seen, maxLog))
		lines.Buffer(nil, maxLog)
		for lines.Scan() {
			logrus.Debugf("supervisor: %s", message(lines.Text()))
		}
	}
}

// logLine is one of logrus's text format: message and fields, which may hold what the
// guest says, and are quoted then.
var logLine = regexp.MustCompile(`^time="[^"]*" level=\w+ msg=("(?:[^"\\]|\\.)*"|\S*)(.*)$`)

// message is a line without its time and level, or all of one that has another form.
func message(line string) string {
	parts := logLine.FindStringSubmatch(line)
	if parts == nil {
		return line
	}
	if text, err := strconv.Unquote(parts[1]); err == nil {
		parts[1] = text
	}
	return parts[1] + parts[2]
}
