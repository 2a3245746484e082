// Command bench measures husk, runc, other runtimes if they are installed, and bare QEMU, in
// one run on one machine. It takes samples in turn, so that other load hits all of them alike.
// The figures are foremost ratios, because milliseconds of one machine mean little on another.
//
// Results are checked: a wrong exit code or output ends the section.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// bench is one run of the program.
type bench struct {
	husk    string // path of the binary
	config  string // husk's settings file
	prog    string // path of testprog
	dir     string // scratch directory, removed at the end
	samples int
	mib     int // size of the output in the section stdout, in MiB

	runtimes []*oci // husk first, then runc
	results  results
}

// The sections in the order in which they run.
var sections = []struct {
	name string
	run  func(*bench) error
}{
	{"start-run", (*bench).warm},
	{"start-exec", (*bench).exec},
	{"start-create", (*bench).create},
	{"start-cold", (*bench).cold},
	{"parallel", (*bench).parallel},
	{"memory", (*bench).memory},
	{"many", (*bench).many},
	{"stdout", (*bench).stdout},
	{"files-rootfs", (*bench).rootfsFiles},
	{"files-volume", (*bench).volumeFiles},
	{"9p", (*bench).ninep},
	{"network", (*bench).network},
}

func init() {
	// QEMU ends with the thread that has started it, so the main goroutine keeps its thread.
	runtime.LockOSThread()
}

func main() {
	b := &bench{}
	only := flag.String("only", ".", "run the sections that match this `regexp`")
	out := flag.String("json", "", "write the figures to this `file` as well")
	flag.StringVar(&b.husk, "husk", "./husk", "husk's `binary`")
	flag.StringVar(&b.config, "config", "", "husk's settings `file`")
	flag.StringVar(&b.prog, "testprog", "", "testprog's `binary`")
	flag.IntVar(&b.samples, "samples", 20, "samples of each start-up figure")
	flag.IntVar(&b.mib, "mib", 1024, "MiB through stdout")
	flag.Parse()
	if err := b.main(*only, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) main(only, out string) (err error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp("", "husk-bench-"); err != nil {
		return err
	}
	defer b.cleanUp()
	if err := b.setUp(); err != nil {
		return err
	}
	began := time.Now()
	var failed []string
	for _, s := range sections {
		if !match.MatchString(s.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%5.0f s  %s\n", time.Since(began).Seconds(), s.name)
		// One section's failure does not make the others' figures worthless.
		if err := s.run(b); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", s.name, err)
			failed = append(failed, s.name)
		}
	}
	fmt.Printf("\n%s\n\n", machine())
	b.results.print(os.Stdout)
	if out != "" {
		if err := b.write(out); err != nil {
			return err
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// write writes the figures to a file.
func (b *bench) write(out string) error {
	doc, err := json.MarshalIndent(map[string]any{"machine": machine(), "figures": b.results.rows, "notes": b.results.notes}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(out, append(doc, '\n'), 0o644)
}

// setUp finds the runtimes, and makes a bundle for each command that is measured.
func (b *bench) setUp() error {
	var err error
	for _, path := range []*string{&b.husk, &b.config, &b.prog} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
		if _, err := os.Stat(*path); err != nil {
			return err
		}
	}
	b.runtimes = []*oci{{name: "husk", argv: []string{b.husk, "--config", b.config, "--root", filepath.Join(b.dir, "husk")}}}
	for _, argv := range [][]string{{"runc"}, {"crun"}, {"runsc", "--platform=ptrace", "--network=none"}} {
		name := argv[0]
		path, err := exec.LookPath(name)
		if err != nil {
			if name == "runc" {
				return fmt.Errorf("%w: it is what husk is compared with", err)
			}
			continue
		}
		argv[0] = path
		b.runtimes = append(b.runtimes, &oci{name: name, argv: append(argv, "--root", filepath.Join(b.dir, name))})
	}
	rootfs := filepath.Join(b.dir, "rootfs")
	if err := makeRootfs(rootfs, b.prog); err != nil {
		return err
	}
	for _, command := range []string{"true", "sleep 1000", "bench"} {
		if err := b.makeBundle(b.bundle(command), rootfs, strings.Fields(command)); err != nil {
			return err
		}
	}
	// A runtime that does not work on this machine is left out, with a message.
	working := b.runtimes[:0]
	for _, r := range b.runtimes {
		if err := r.run(b.bundle("true"), b.id()); err != nil {
			if r.name == "husk" || r.name == "runc" {
				return err
			}
			fmt.Fprintf(os.Stderr, "%s is left out: %v\n", r.name, err)
			continue
		}
		working = append(working, r)
	}
	b.runtimes = working
	return nil
}

// machine describes the machine on which the figures were taken.
func machine() string {
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`model name\s*:\s*(.*)`).FindStringSubmatch(string(info)); m != nil {
			model = m[1]
		}
	}
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%d x %s, Linux %s", runtime.NumCPU(), model, strings.TrimSpace(string(release)))
}
