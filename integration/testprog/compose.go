package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The programs of a compose file: a database, a cache and a web server.

// store counts. It answers each line "ADD" with the new number, and "GET" with the number.
// Usage: "store PORT [FILE]". With FILE the number is saved before it is answered, so it
// outlives the program.
func store(args []string) error {
	if len(args) < 1 {
		return errors.New("store wants PORT [FILE]")
	}
	count, file := 0, ""
	if len(args) > 1 {
		file = args[1]
		if text, err := os.ReadFile(file); err == nil {
			if count, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
				return err
			}
		}
	}
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	fmt.Println("listening, at", count)
	var mu sync.Mutex
	answerLine := func(line string) string {
		mu.Lock()
		defer mu.Unlock()
		switch line {
		case "ADD":
			if err := saveCount(file, count+1); err != nil {
				return err.Error()
			}
			count++
		case "GET":
		default:
			return "what is " + line
		}
		return strconv.Itoa(count)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			for in := bufio.NewScanner(c); in.Scan(); {
				if _, err := fmt.Fprintln(c, answerLine(in.Text())); err != nil {
					return
				}
			}
		}()
	}
}

// saveCount replaces the file by rename, so that a killed program leaves the old or the new
// one.
func saveCount(file string, count int) error {
	if file == "" {
		return nil
	}
	f, err := os.Create(file + ".new")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, count); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// ask prints what a store answers. Usage: "ask ADDRESS LINE".
func ask(args []string) error {
	if len(args) != 2 {
		return errors.New("ask wants ADDRESS LINE")
	}
	reply, err := askStore(args[0], args[1])
	if err != nil {
		return err
	}
	fmt.Println(reply)
	return nil
}

func askStore(address, line string) (string, error) {
	c, err := net.DialTimeout("tcp", address, 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	reply, err := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(reply), err
}

// front adds one to both stores and answers any GET with "HOST CACHED STORED". Usage: "front
// PORT CACHE DATABASE".
func front(args []string) error {
	if len(args) != 3 {
		return errors.New("front wants PORT CACHE DATABASE")
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			for in := bufio.NewScanner(c); in.Scan() && in.Text() != ""; {
			}
			cached, stored, err := visit(args[1], args[2])
			if err != nil {
				fmt.Fprintf(c, "HTTP/1.0 500 Internal Server Error\r\n\r\n%v\n", err)
				return
			}
			fmt.Fprintf(c, "HTTP/1.0 200 OK\r\n\r\n%s %s %s\n", host, cached, stored)
		}()
	}
}

// visit adds one to both stores or, unless one of them dies meanwhile, to none.
func visit(cache, database string) (cached, stored string, err error) {
	for _, line := range []string{"GET", "ADD"} {
		if cached, err = askStore(cache, line); err != nil {
			return "", "", err
		}
		if stored, err = askStore(database, line); err != nil {
			return "", "", err
		}
	}
	return cached, stored, nil
}
