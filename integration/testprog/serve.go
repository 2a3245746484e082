package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"
)

// serve answers GET /WORD with the word, and each datagram with itself, on one
// port of every address: "serve PORT". Not net/http, which is larger than all
// the rest.
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
