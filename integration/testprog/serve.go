package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// serve answers GET /WORD with the word, and each datagram with the same datagram, on one port
// of all addresses. Usage: "serve PORT". It does not use net/http, which is larger than
// everything else here.
func serve(args []string) error {
	if len(args) != 1 {
		return errors.New("serve wants PORT")
	}
	packets, err := net.ListenPacket("udp", ":"+args[0])
	if err != nil {
		return err
	}
	go echoPackets(packets)
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go answer(c)
	}
}

// dns answers every question with one address, by UDP. Usage: "dns ADDRESS".
func dns(args []string) error {
	if len(args) != 1 {
		return errors.New("dns wants ADDRESS")
	}
	c, err := net.ListenPacket("udp", ":53")
	if err != nil {
		return err
	}
	fmt.Println("listening")
	buf := make([]byte, 512)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if n < 12 {
			continue
		}
		end := 12 // end of the question: name, type and class
		for end < n && buf[end] != 0 {
			end += int(buf[end]) + 1
		}
		if end += 5; end > n {
			continue
		}
		reply := append([]byte(nil), buf[:end]...)
		copy(reply[2:12], []byte{0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0}) // a response with one question and one record
		if buf[end-3] != 1 {                                          // not a question for an IPv4 address
			reply[7] = 0
		} else {
			reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4)
			reply = append(reply, net.ParseIP(args[0]).To4()...)
		}
		if _, err := c.WriteTo(reply, from); err != nil {
			return err
		}
	}
}

func echoPackets(c net.PacketConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = c.WriteTo(buf[:n], from)
	}
}

func answer(c net.Conn) {
	defer c.Close()
	in := bufio.NewScanner(c)
	word := ""
	for in.Scan() && in.Text() != "" {
		if path, ok := strings.CutPrefix(in.Text(), "GET /"); ok {
			word, _, _ = strings.Cut(path, " ")
		}
	}
	fmt.Fprintf(c, "HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s\n", len(word)+1, word)
}

// activated answers connections to a listening socket, its descriptor 3, with what they send,
// in capitals, and a word about the socket. It ends after a connection that sends nothing.
func activated([]string) error {
	l, err := net.FileListener(os.NewFile(3, "3"))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		b, err := io.ReadAll(c)
		if err == nil {
			_, err = fmt.Fprintf(c, "%s %s", strings.ToUpper(string(b)), l.Addr().Network())
		}
		if err = errors.Join(err, c.Close()); err != nil || len(b) == 0 {
			return err
		}
	}
}

// activate does what a service manager does for a socket unit. Usage: "activate ADDRESS
// COMMAND...". It ends with the command.
func activate(args []string) error {
	if len(args) < 2 {
		return errors.New("activate wants ADDRESS COMMAND [ARGUMENT...]")
	}
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return err
	}
	path, err := exec.LookPath(args[1])
	if err != nil {
		return err
	}
	if err := syscall.Dup3(int(f.Fd()), 3, 0); err != nil {
		return err
	}
	env := append(os.Environ(), "LISTEN_FDS=1", fmt.Sprintf("LISTEN_PID=%d", os.Getpid()))
	return syscall.Exec(path, args[1:], env)
}

// notify sends its arguments to the socket of sd_notify(3), each in one datagram.
func notify(args []string) error {
	c, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return err
	}
	for _, text := range args {
		if _, err := c.Write([]byte(text)); err != nil {
			return err
		}
	}
	return c.Close()
}

// manager makes a socket and prints each datagram that comes, as a service manager that listens
// for sd_notify(3). Usage: "manager PATH".
func manager(args []string) error {
	if len(args) != 1 {
		return errors.New("manager wants PATH")
	}
	c, err := net.ListenPacket("unixgram", args[0])
	if err != nil {
		return err
	}
	b := make([]byte, 4096)
	for {
		n, _, err := c.ReadFrom(b)
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", b[:n])
	}
}
