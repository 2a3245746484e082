package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"
)

// pattern writes the given number of MiB to stdout, without two equal blocks, and their SHA-256
// to stderr.
func pattern(args []string) error {
	n, err := number(args, 0)
	if err != nil {
		return err
	}
	sum := sha256.New()
	out := io.MultiWriter(os.Stdout, sum)
	block := make([]byte, 1<<20)
	for i := range n {
		for j := range block {
			block[j] = byte(i*7 + j*13 + j>>8)
		}
		if _, err := out.Write(block); err != nil {
			return err
		}
	}
	fmt.Fprintf(os.Stderr, "%x\n", sum.Sum(nil))
	return nil
}

// flood fills stderr until it blocks, and writes lines to stdout meanwhile.
func flood(args []string) error {
	lines, err := number(args, 0)
	if err != nil {
		return err
	}
	go func() {
		block := make([]byte, 64<<10)
		for i := range block {
			block[i] = 'e'
		}
		for {
			if _, err := os.Stderr.Write(block); err != nil {
				return
			}
		}
	}()
	time.Sleep(time.Second) // until stderr has filled every buffer on its way
	for i := range lines {
		fmt.Println("line", i)
	}
	return nil
}

// appendLines appends numbered lines to a file, opening it for each.
func appendLines(args []string) error {
	if len(args) != 2 {
		return errors.New("append wants FILE COUNT")
	}
	n, err := number(args, 1)
	if err != nil {
		return err
	}
	for i := range n {
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(f, "container %d\n", i)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// tcp: "tcp send ADDRESS MiB" connects and writes; "tcp serve ADDRESS" accepts once and prints
// the number of bytes that came and their SHA-256.
func tcp(args []string) error {
	if len(args) < 2 {
		return errors.New("tcp wants send|serve ADDRESS")
	}
	if args[0] == "send" {
		return tcpSend(args)
	}
	l, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	fmt.Println("listening")
	c, err := l.Accept()
	if err != nil {
		return err
	}
	defer c.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, c)
	if err != nil {
		return err
	}
	fmt.Printf("%d %x\n", n, sum.Sum(nil))
	return nil
}

func tcpSend(args []string) error {
	n, err := number(args, 2)
	if err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", args[1], 20*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	sum := sha256.New()
	block := make([]byte, 1<<20)
	for i := range n {
		block[0] = byte(i)
		if _, err := io.MultiWriter(c, sum).Write(block); err != nil {
			return err
		}
	}
	fmt.Printf("%d %x\n", n<<20, sum.Sum(nil))
	return nil
}

// udp sends a datagram and prints the answer. Usage: "udp ADDRESS TEXT".
func udp(args []string) error {
	if len(args) != 2 {
		return errors.New("udp wants ADDRESS TEXT")
	}
	c, err := net.Dial("udp", args[0])
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(c, args[1]); err != nil {
		return err
	}
	buf := make([]byte, 2000)
	n, err := c.Read(buf)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n", buf[:n])
	return nil
}

// tty prints the terminal's size at the start and at each line that it reads.
func tty([]string) error {
	in := bufio.NewScanner(os.Stdin)
	for ok := true; ok; ok = in.Scan() {
		var size struct{ rows, columns, x, y uint16 }
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		if errno != 0 {
			return fmt.Errorf("stdin is not a terminal: %w", errno)
		}
		fmt.Printf("size %d %d\n", size.rows, size.columns)
	}
	return in.Err()
}
