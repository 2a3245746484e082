package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Program is the only program in the container. Socket is the path of the agent's socket there.
const (
	Program = "hostile9p"
	Socket  = "/socket"
)

// last begins the line that says how the attack ended.
const last = "ended with "

// Serve listens for the container's process and executes its commands, as the guest's kernel
// could.
func Serve(path, tag string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			code := 0
			if err := serve(conn, tag); err != nil {
				fmt.Fprintf(conn, "FAILED: %v\n", err)
				code = 1
			}
			fmt.Fprintf(conn, "%s%d\n", last, code)
			conn.Close()
		}
	}()
	return nil
}

type order struct {
	Attack string
	Target target
}

func serve(conn net.Conn, tag string) error {
	var o order
	if err := json.NewDecoder(conn).Decode(&o); err != nil {
		return err
	}
	d, err := OpenDevice(tag)
	if err != nil {
		return fmt.Errorf("take the device: %w", err)
	}
	s := &session{d: d, out: conn}
	var chosen []attack
	for _, a := range append(attacks, attack{"exhaust", exhaust}, attack{"fuzz", fuzz}, attack{"own", own}) {
		if o.Attack == a.name || o.Attack == "all" && a.name != "exhaust" && a.name != "fuzz" && a.name != "own" {
			chosen = append(chosen, a)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no attack %q", o.Attack)
	}
	var errs []error
	for _, a := range chosen {
		s.leaked = 0
		began := time.Now()
		err := a.run(s, o.Target)
		if s.leaked > 0 {
			err = errors.Join(err, fmt.Errorf("%d answers have what is outside", s.leaked))
		}
		if err != nil {
			s.say("got through: %s: %v", a.name, err)
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
			continue
		}
		s.say("held: %s (%v)", a.name, time.Since(began).Round(time.Millisecond))
	}
	return errors.Join(errs...)
}

// Ask is the container's process. Its arguments are the attack and the target.
func Ask(args []string) int {
	const fields = 5
	if len(args) != fields {
		fmt.Println("usage: hostile9p ATTACK OUTSIDE VOL SECONDS SEED")
		return 2
	}
	seconds, err := strconv.Atoi(args[3])
	seed, err2 := strconv.ParseUint(args[4], 10, 64)
	if err != nil || err2 != nil {
		fmt.Println(errors.Join(err, err2))
		return 2
	}
	conn, err := net.Dial("unix", Socket)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	o := order{Attack: args[0], Target: target{Outside: args[1], Vol: args[2], Seconds: seconds, Seed: seed}}
	if err := json.NewEncoder(conn).Encode(o); err != nil {
		fmt.Println(err)
		return 1
	}
	text := &strings.Builder{}
	if _, err := io.Copy(io.MultiWriter(os.Stdout, text), conn); err != nil {
		fmt.Println(err)
		return 1
	}
	if !strings.HasSuffix(text.String(), last+"0\n") {
		return 1
	}
	return 0
}
