//go:build integration

package integration

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Faults: at a given point of a verb one of husk's processes is killed or stopped. After each
// fault state tells the truth, delete --force works at once, nothing is left, and a container
// beside it, the witness, is not affected.
//
// FAULTS says how many faults are tried: a number, spread over all of them, or "all".

// quickFaults is how many faults are part of the suite.
const quickFaults = 25

// subject is the container that suffers the faults.
type subject struct {
	wake   func() // continues what the test's tracer has stopped; nil: there is no tracer
	e      *env
	bundle string
	id     string
	pid    int // 0: unknown
	out    *stream
}

// ticks is the container's program. Its output shows whether it runs.
const ticks = "while :; do echo tick; sleep 0.1; done"

// faultVerb is a verb, with what has to exist before it.
type faultVerb struct {
	name   string
	userNS bool                      // a container with a stand-in
	before []string                  // verbs that come first
	args   func(s *subject) []string // arguments of the verb
	points map[string]int            // how many points there are of each kind
	vmm    bool                      // the vmm suffers faults too
}

func plain(verb string, more ...string) func(*subject) []string {
	return func(s *subject) []string { return append(append([]string{verb}, more...), s.id) }
}

var faultVerbs = []faultVerb{
	{name: "create", args: (*subject).createArgs, points: map[string]int{roleCLI: 14, roleSupervisor: 18}, vmm: true},
	{name: "create-userns", userNS: true, args: (*subject).createArgs, points: map[string]int{roleCLI: 6, roleSupervisor: 6, roleStandIn: 4}},
	{name: "start", before: []string{"create"}, args: plain("start"), points: map[string]int{roleCLI: 4, roleSupervisor: 5}, vmm: true},
	{name: "exec", before: []string{"create", "start"}, args: func(s *subject) []string {
		return []string{"exec", s.id, "sh", "-c", "echo in; sleep 0.3; echo out"}
	}, points: map[string]int{roleCLI: 6, roleSupervisor: 4, roleExec: 8}, vmm: true},
	{name: "kill", before: []string{"create", "start"}, args: func(s *subject) []string { return []string{"kill", s.id, "KILL"} }, points: map[string]int{roleCLI: 4, roleSupervisor: 4}, vmm: true},
	{name: "pause", before: []string{"create", "start"}, args: plain("pause"), points: map[string]int{roleCLI: 4, roleSupervisor: 4}, vmm: true},
	{name: "resume", before: []string{"create", "start", "pause"}, args: plain("resume"), points: map[string]int{roleCLI: 4, roleSupervisor: 4}, vmm: true},
	{name: "update", before: []string{"create", "start"}, args: plain("update", "--pids-limit", "77"), points: map[string]int{roleCLI: 4, roleSupervisor: 4}, vmm: true},
	{name: "delete", before: []string{"create", "start"}, args: plain("delete", "--force"), points: map[string]int{roleCLI: 8}, vmm: true},
	{name: "state", before: []string{"create", "start"}, args: plain("state"), points: map[string]int{roleCLI: 4}, vmm: true},
	{name: "events", before: []string{"create", "start"}, args: plain("events", "--stats"), points: map[string]int{roleCLI: 4, roleSupervisor: 4}, vmm: true},
	{name: "ps", before: []string{"create", "start"}, args: plain("ps"), points: map[string]int{roleCLI: 3, roleSupervisor: 3}, vmm: true},
}

func (s *subject) createArgs() []string {
	return []string{"create", "--bundle", s.bundle, "--pid-file", s.e.dir + "/pid", s.id}
}

// fault is one combination of point, process and signal.
type fault struct {
	verb   *faultVerb
	at     point
	victim string // role of the process
	signal unix.Signal
}

func (f fault) String() string {
	name := fmt.Sprintf("%s:%s:%s", f.verb.name, f.at, unix.SignalName(f.signal)[3:])
	if f.victim != f.at.Role {
		name += ":" + f.victim
	}
	return strings.ReplaceAll(name, "/", ":")
}

func TestFaults(t *testing.T) {
	needVM(t)
	if os.Getenv("HUSK_EXPECT_ACCEL") == "kvm" {
		t.Skip("the emulated outer machine is too slow for tracing")
	}
	w := newWitness(t) // first, because some things are made only once and belong to no verb
	var all []fault
	for i := range faultVerbs {
		all = append(all, faultsOf(t, &faultVerbs[i])...)
	}
	picked := pick(all, faultCount(t, len(all)))
	table := &faultTable{}
	t.Cleanup(func() { table.print(t) })
	for _, f := range picked {
		t.Run(f.String(), func(t *testing.T) {
			t.Parallel()
			row := &faultRow{fault: f}
			t.Cleanup(func() { // after the leak check
				row.failed = t.Failed()
				table.add(row)
			})
			runFault(t, f, w, row)
		})
	}
}

func faultCount(t *testing.T, all int) int {
	t.Helper()
	switch text := os.Getenv("FAULTS"); text {
	case "":
		return quickFaults
	case "all":
		return all
	default:
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatalf("FAULTS: %v", err)
		}
		return min(n, all)
	}
}

// pick returns n elements, spread evenly.
func pick[T any](all []T, n int) []T {
	if n >= len(all) {
		return all
	}
	picked := make([]T, 0, n)
	for i := range n {
		picked = append(picked, all[i*len(all)/n])
	}
	return picked
}

// faultsOf runs a verb once without a fault, to learn its points, and chooses some of them.
func faultsOf(t *testing.T, v *faultVerb) []fault {
	t.Helper()
	seen := map[string][]point{}
	ran := false
	t.Run("points:"+v.name+":", func(t *testing.T) {
		ran = true
		s := v.prepare(t)
		p, _, err := s.e.startTraced(call{dir: s.e.dir}, s.live(), func(p point, _ int) bool {
			seen[p.Role] = append(seen[p.Role], p)
			return false
		}, v.args(s)...)
		if err != nil {
			t.Fatal(err)
		}
		if code := p.code(); code != 0 {
			t.Fatalf("%s: exit code %d: %s", p, code, p.log())
		}
		s.remove()
	})
	if !ran {
		return nil // FAULTS asks only for faults of other verbs
	}
	var faults []fault
	for _, role := range []string{roleCLI, roleStandIn, roleSupervisor, roleExec} {
		if v.points[role] > 0 && len(seen[role]) == 0 {
			t.Fatalf("%s: no system call of %s was seen", v.name, role)
		}
		for _, at := range pick(seen[role], v.points[role]) {
			for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP} {
				faults = append(faults, fault{v, at, role, signal})
			}
		}
	}
	if v.vmm {
		role := roleCLI
		if v.name == "create" {
			role = roleSupervisor // while there is a vmm the cli only waits
		}
		points := seen[role]
		late := []point{points[len(points)*2/3], points[len(points)-1]}
		if v.name == "delete" {
			late = []point{points[0], points[len(points)/4]} // later the process has gone
		}
		for _, at := range late {
			for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGSTOP} {
				faults = append(faults, fault{v, at, roleVMM, signal})
			}
		}
	}
	return faults
}

// prepare makes the container that the verb needs.
func (v *faultVerb) prepare(t *testing.T) *subject {
	t.Helper()
	e := newEnv(t)
	s := &subject{e: e, id: e.id()}
	if v.userNS {
		s.bundle = e.mappedBundle(withScript(ticks), withUserNS(""))
	} else {
		s.bundle = e.bundle(withScript(ticks))
	}
	for _, verb := range v.before {
		args := []string{verb, s.id}
		if verb == "create" {
			args = s.createArgs()
		}
		// Nobody waits for the supervisor, because a wait would take its stops from the tracer.
		p := e.start(call{dir: e.dir}, args...)
		if code := p.code(); code != 0 {
			t.Fatalf("%s: exit code %d: %s", p, code, p.log())
		}
		if verb == "create" {
			s.out = p.stdout
			s.readPID()
		}
	}
	return s
}

func (s *subject) readPID() {
	if text, err := os.ReadFile(s.e.dir + "/pid"); err == nil {
		s.pid, _ = strconv.Atoi(string(text))
	}
}

// live returns the processes of the container that a tracer can follow, with their roles.
func (s *subject) live() map[int]string {
	live := map[int]string{}
	for pid, role := range s.roles() {
		if role == roleSupervisor {
			live[pid] = role
		}
	}
	return live
}

// roles returns the living processes of the container with their roles.
func (s *subject) roles() map[int]string {
	roles := map[int]string{}
	for pid := range s.e.processes() {
		if role := roleOf(pid); role != "" {
			roles[pid] = role
		}
	}
	return roles
}

func (s *subject) has(role string) bool {
	for _, r := range s.roles() {
		if r == role {
			return true
		}
	}
	return false
}

// reap reaps what was killed, as an engine would.
func (s *subject) reap() {
	s.readPID()
	if s.pid != 0 {
		reap(s.pid)
	}
}

func (s *subject) remove() {
	s.e.t.Helper()
	s.e.ok("delete", "--force", s.id)
	s.reap()
}

// hit sends the signal when the point has come. victim is 0 if the process does not exist yet.
func (f fault) hit(s *subject, pid int) (victim int, err error) {
	if f.victim == f.at.Role {
		return pid, unix.Kill(pid, f.signal)
	}
	vmms := s.e.vmms()
	if len(vmms) == 0 {
		return 0, nil
	}
	return vmms[0], unix.Kill(vmms[0], f.signal)
}

func runFault(t *testing.T, f fault, w *witness, row *faultRow) {
	s := f.verb.prepare(t)
	var stopped int
	p, others, err := s.e.startTraced(call{dir: s.e.dir}, s.live(), func(at point, pid int) bool {
		if at != f.at {
			return false
		}
		victim, err := f.hit(s, pid)
		if err != nil {
			t.Errorf("signal the %s: %v", f.victim, err)
		}
		if victim != 0 {
			row.hit = true
			if f.signal == unix.SIGSTOP {
				stopped = victim
			}
		}
		return true
	}, f.verb.args(s)...)
	if err != nil {
		t.Fatal(err)
	}
	if s.out == nil {
		s.out = p.stdout
	}
	defer s.reap()
	s.wakeOthers(stopped)
	select {
	case <-p.done:
		s.reapOrphans(others)
	case <-time.After(settle): // a process is stopped, or waits for one that is
		s.wakeOthers(stopped)
	}
	s.readPID()
	s.wake = func() { s.wakeOthers(stopped) } // the tracer's SIGSTOP may come late
	s.tellsTheTruth(t, stopped != 0 && f.victim != roleCLI && f.victim != roleExec)
	s.goes(t, row)
	if stopped != 0 && f.victim == roleCLI {
		if err := unix.Kill(stopped, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			t.Error(err)
		}
	}
	select {
	case <-p.done:
	case <-time.After(endsIn):
		t.Errorf("%s has not ended %v after the container", p, endsIn)
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	s.reapOrphans(others)
	w.isWell(t)
}

// reapOrphans reaps processes whose parent, the cli, has died, as engines do. Until then the
// kernel does not let the first process of a pid namespace end.
func (s *subject) reapOrphans(pids []int) {
	for _, pid := range pids {
		if pid != s.pid {
			reap(pid)
		}
	}
}

// wakeOthers continues all processes except the one that is meant to be stopped. A thread that
// was just created when its tracer went may still get the SIGSTOP by which it would have been
// attached.
func (s *subject) wakeOthers(stopped int) {
	for pid := range s.e.processes() {
		if st := procStat(pid); pid != stopped && len(st) > 0 && st[0] == "T" {
			_ = unix.Kill(pid, unix.SIGCONT)
		}
	}
}

const (
	settle = time.Second
	// endsIn bounds how long a verb may go on when the container that it waits for has gone.
	endsIn = 15 * time.Second
	// truthIn bounds how long state may be out of date.
	truthIn = 15 * time.Second
)

// tellsTheTruth compares what state says with the processes that exist and the output that
// comes. A container with a stopped process gives no output.
func (s *subject) tellsTheTruth(t *testing.T, stopped bool) {
	t.Helper()
	var lie string
	deadline := time.Now().Add(truthIn)
	for {
		if lie = s.lie(t, stopped); lie == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("state lies: %s", lie)
			return
		}
		time.Sleep(100 * time.Millisecond) // no event tells it
		if s.wake != nil {
			s.wake()
		}
	}
}

// lie returns what is wrong in what state says; "" if nothing is.
func (s *subject) lie(t *testing.T, stopped bool) string {
	t.Helper()
	r := s.e.do("state", s.id)
	word := "none"
	if r.code == 0 {
		var st status
		mustJSON(t, r.stdout, &st)
		word = st.Status
	} else if !strings.Contains(r.stderr, missing) {
		return fmt.Sprintf("exit code %d: %s", r.code, r.stderr)
	}
	alive := s.has(roleSupervisor) || s.has(roleStandIn) || s.has(roleVMM)
	// If the container has ended meanwhile, the answer is older than the look.
	switch word {
	case "none", "stopped":
		if alive {
			return fmt.Sprintf("%s, but there are %v", word, s.roles())
		}
		return ""
	case "creating":
		return ""
	}
	if !alive {
		return word + ", but it has no process"
	}
	if stopped {
		return ""
	}
	before := len(s.out.String())
	moves := s.out.until(2*time.Second, func(text string, _ bool) bool { return len(text) > before }) == nil
	if want := word == "running"; moves != want {
		return fmt.Sprintf("%s, but its process runs: %v", word, moves)
	}
	return ""
}

// delete --force that waits for nothing takes promptly at most. On a busy machine it may take
// usually times as long as the deletion of a healthy container there, and never so long that it
// must have met a deadline of husk's.
const (
	promptly       = 2 * time.Second
	usually        = 5
	deleteDeadline = 25 * time.Second // delete gives up after 30 s
)

// goes deletes the container by force, which must not wait for anything.
func (s *subject) goes(t *testing.T, row *faultRow) {
	t.Helper()
	began := time.Now()
	r := s.e.do("delete", "--force", s.id)
	row.deleted = time.Since(began)
	if r.code != 0 {
		t.Errorf("%s: exit code %d: %s", r.what, r.code, r.stderr)
	}
	if row.deleted > promptly {
		if limit := min(deleteDeadline, usually*s.e.healthyDelete()); row.deleted > max(promptly, limit) {
			t.Errorf("%s took %v, more than %v", r.what, row.deleted, limit)
		}
	}
	s.e.do("state", s.id).fails(1, missing)
}

// healthyDelete measures delete --force of a healthy container.
func (e *env) healthyDelete() time.Duration {
	e.t.Helper()
	c := e.createStarted(e.bundle(withScript(ticks)))
	began := time.Now()
	e.ok("delete", "--force", c.id)
	took := time.Since(began)
	e.exitOf(c.exit)
	return took
}

// witness is a container to which nothing is done.
type witness struct {
	mu sync.Mutex
	c  *container
}

func newWitness(t *testing.T) *witness {
	t.Helper()
	e := newEnv(t)
	return &witness{c: e.createStarted(e.bundle(withScript(ticks)))}
}

// isWell checks the witness's output and starts a process in it.
func (w *witness) isWell(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	before := len(w.c.stdout.String())
	if r := w.c.e.do("exec", w.c.id, "echo", "well"); r.code != 0 || r.stdout != "well\n" {
		t.Errorf("the container beside it: exec: exit code %d, %q, %q", r.code, r.stdout, r.stderr)
	}
	if err := w.c.stdout.until(testTimeout/2, func(text string, _ bool) bool { return len(text) > before }); err != nil {
		t.Errorf("the container beside it: its output has stopped: %v", err)
	}
}

// faultRow is the result of one fault.
type faultRow struct {
	fault
	hit     bool // the point has come
	failed  bool
	deleted time.Duration
}

type faultTable struct {
	mu   sync.Mutex
	rows []*faultRow
}

func (ft *faultTable) add(r *faultRow) {
	ft.mu.Lock()
	defer ft.mu.Unlock()
	ft.rows = append(ft.rows, r)
}

// print prints a summary by verb, process and signal.
func (ft *faultTable) print(t *testing.T) {
	type sum struct {
		n, hit, failed int
		slowest        time.Duration
	}
	const total = "total"
	sums, keys := map[string]*sum{}, []string{}
	for _, r := range ft.rows {
		for _, key := range []string{fmt.Sprintf("%-14s %-10s %s", r.verb.name, r.victim, unix.SignalName(r.signal)), total} {
			s := sums[key]
			if s == nil {
				s = &sum{}
				sums[key], keys = s, append(keys, key)
			}
			s.n++
			if r.hit {
				s.hit++
			}
			if r.failed {
				s.failed++
			}
			s.slowest = max(s.slowest, r.deleted)
		}
	}
	slices.Sort(keys)
	keys = append(slices.DeleteFunc(keys, func(key string) bool { return key == total }), total)
	var b strings.Builder
	fmt.Fprintf(&b, "%-34s %5s %5s %6s %s\n", "verb           victim     signal", "tried", "hit", "failed", "slowest delete --force")
	for _, key := range keys {
		s := sums[key]
		if s == nil {
			continue // none was tried
		}
		fmt.Fprintf(&b, "%-34s %5d %5d %6d %v\n", key, s.n, s.hit, s.failed, s.slowest.Round(time.Millisecond))
	}
	fmt.Print(b.String())
}
