package failures

import (
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"time"
)

// Sockets of the host's log.
const (
	JournalSocket = "/run/systemd/journal/socket"
	SyslogSocket  = "/dev/log"
)

// maxMessage bounds one message to the host's log, in bytes. It is the default limit of syslog
// servers.
const maxMessage = 8 << 10

// sendTimeout bounds the wait for a log that takes no messages.
const sendTimeout = time.Second

// Log is a connection to the host's log. It works without a path.
type Log struct {
	conn    *net.UnixConn
	journal bool
}

// OpenLog connects to systemd's journal or, if there is none, to syslog. It returns nil if
// there is neither.
func OpenLog(journal, syslog string) *Log {
	for _, socket := range []string{journal, syslog} {
		conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err == nil {
			return &Log{conn, socket == journal}
		}
	}
	return nil
}

// Close closes the connection. l may be nil.
func (l *Log) Close() error {
	if l == nil {
		return nil
	}
	return l.conn.Close()
}

// Values of syslog(3).
const priorityError, facilityDaemon = 3, 3

// Send writes one failure to the log. l may be nil.
func (l *Log) Send(f Failure) error {
	if l == nil {
		return nil
	}
	line := cleanLine(f.Line(), maxMessage)
	message := fmt.Sprintf("<%d>%s husk: %s", facilityDaemon<<3|priorityError, f.Time.Local().Format(time.Stamp), line)
	if l.journal {
		message = fields("MESSAGE", line, "PRIORITY", fmt.Sprint(priorityError), "SYSLOG_IDENTIFIER", "husk", "CONTAINER_ID", f.ID)
	}
	err := l.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	if err == nil {
		_, err = l.conn.Write([]byte(message))
	}
	if err != nil {
		return fmt.Errorf("write to the host's log: %w", err)
	}
	return nil
}

// fields returns a message in the journal's native protocol. Each value follows its length, so
// that a value cannot start another field.
func fields(pairs ...string) string {
	var b strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		b.WriteString(pairs[i] + "\n")
		b.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(pairs[i+1]))))
		b.WriteString(pairs[i+1] + "\n")
	}
	return b.String()
}
