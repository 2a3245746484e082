// husk is an OCI runtime, a drop-in for runc, in which every container is a small virtual
// machine.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"github.com/huskvm/husk/host/config"
	"github.com/huskvm/husk/host/isolation"
	"github.com/huskvm/husk/host/state"
	"github.com/huskvm/husk/host/supervisor"
	"github.com/huskvm/husk/host/supervisor/execprocess"
	"github.com/huskvm/husk/host/supervisor/hog"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/standin"
	"github.com/huskvm/husk/host/timings"
	"github.com/huskvm/husk/hypervisor/qemu"
	"github.com/huskvm/husk/linux/syscalls"
)

// The Makefile sets these. build is the same in husk and in the agent that it contains.
var (
	version = "0.1.0-dev"
	commit  = "unknown"
	build   = "unknown"
)

// Exit codes of the cli itself, equal to runc's.
const (
	exitFailure = 1
	exitExec    = 255 // exec could not start its process
	exitPanic   = 2   // an error in husk itself, as in any Go program
)

func init() {
	// /proc/PID shows the main thread. An exec process moves that thread into the container's
	// mounts, so main must stay on it. In a cli no goroutine that joins a namespace in order to
	// fork there (launch.Start) may run on it.
	runtime.LockOSThread()
	// Lines of ttrpc, for example about an answer that nobody waits for, would appear on the
	// supervisor's stderr, which is the container's. What a peer does wrong is an error of the
	// call.
	log.L = logrus.NewEntry(&logrus.Logger{Out: io.Discard, Formatter: &logrus.TextFormatter{}, Hooks: logrus.LevelHooks{}})
}

func main() {
	defer failOnPanic()
	if launch.IsApart() {
		os.Exit(launch.StartApart())
	}
	switch launch.CurrentRole() {
	case launch.Supervisor:
		os.Exit(supervisor.Main(qemu.New()))
	case launch.StandIn:
		os.Exit(standin.Main())
	case launch.Exec:
		os.Exit(execprocess.Main())
	case launch.Hog:
		os.Exit(hog.Main())
	}
	// Engines leave descriptors open in a runtime; its children must not get them.
	if err := syscalls.CloseOnExec(3); err != nil {
		fail(err)
	}
	phases := timings.NewFromStart("cli")
	app := newApp()
	err := app.RunContext(timings.With(context.Background(), phases), flagsFirst(app, os.Args))
	for _, p := range phases.Phases() {
		logrus.Debugf("phase %s of %s: %.1f ms", p.Name, p.Process, float64(p.Took)/float64(time.Millisecond))
	}
	if err != nil {
		fail(err)
	}
}

// failOnPanic turns a panic of the main goroutine, on which verbs run, into an ordinary error.
// The stack trace is in the log, only with --debug.
func failOnPanic() {
	if v := recover(); v != nil {
		logrus.Debugf("%s", debug.Stack())
		fail(&exitError{code: exitPanic, err: fmt.Errorf("internal error, please report it with the log of --debug: %v", v)})
	}
}

func newApp() *cli.App {
	// As with runc -v prints the version, and no command is called help or h by accident.
	cli.VersionFlag = &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"}
	cli.VersionPrinter = func(c *cli.Context) { fmt.Fprint(c.App.Writer, versionText()) }
	app := &cli.App{
		Name:    "husk",
		Usage:   "run each container in a virtual machine of its own; a drop-in for runc",
		Version: version,
		Flags: []cli.Flag{
			cli.HelpFlag, // the library leaves it to the verb of that name
			&cli.BoolFlag{Name: "timings", Usage: "print where the time of create, start or run went to stderr, phase by phase"},
			&cli.BoolFlag{Name: "debug", Usage: "enable debug logging"},
			&cli.StringFlag{Name: "log", Usage: "`FILE` to append the log to (default: stderr)"},
			&cli.StringFlag{Name: "log-format", Value: "text", Usage: "log format: text or json"},
			&cli.StringFlag{Name: "root", Value: state.DefaultRoot, Usage: "`DIR` for the state of containers"},
			&cli.BoolFlag{Name: "systemd-cgroup", Usage: "make cgroups through systemd; cgroupsPath is then slice:prefix:name"},
			&cli.StringFlag{Name: "rootless", Value: "auto", Usage: "accepted for runc's sake; husk needs root"},
			&cli.StringFlag{Name: "criu", Hidden: true, Usage: "accepted for runc's sake"},
			&cli.StringFlag{Name: "config", Usage: "settings `FILE` (default: " + config.DefaultPath + " if it exists)"},
		},
		Before: prepare,
		After:  printTimings,
		Commands: []*cli.Command{
			createCommand, startCommand, stateCommand, killCommand, deleteCommand,
			runCommand, execCommand, psCommand, listCommand, pauseCommand, resumeCommand,
			updateCommand, eventsCommand, metricsCommand, featuresCommand, specCommand, checkCommand, configCommand,
			checkpointCommand, restoreCommand, templateCommand, installCommand, uninstallCommand,
			debugReportCommand, failuresCommand, helpCommand, versionCommand,
		},
		HideHelpCommand: true,
		OnUsageError:    usageError,
		CommandNotFound: commandNotFound,
		// Errors are returned to main, which logs them and exits.
		ExitErrHandler: func(*cli.Context, error) {},
	}
	for i, verb := range app.Commands {
		// A copy, because the library writes into the commands when it runs them.
		c := *verb
		// Otherwise a container named h or help could not be addressed.
		c.HideHelpCommand = true
		c.Description = withExamples(c.Name, c.Description)
		if slices.Contains(ofOne, c.Name) {
			c.Before = handOver
		}
		app.Commands[i] = &c
	}
	return app
}

// ofOne are the verbs for one existing container, which may have been handed over to another
// runtime.
var ofOne = []string{"start", "state", "kill", "delete", "exec", "ps", "pause", "resume", "update", "events"}

// handOver executes the runtime to which the container was handed over, if it was. It is called
// before the verb.
func handOver(c *cli.Context) error {
	root, id := c.String("root"), c.Args().First()
	handed, err := isolation.Find(c.Context, root, id)
	if err != nil || handed == nil {
		return err
	}
	call := callOf(c)
	if c.Command.Name != "delete" {
		return call.Exec(handed)
	}
	code, err := call.Delete(c.Context, handed, root, id)
	if err != nil {
		return err
	}
	return &exitError{code: code}
}

// handOverNew is handOver for a container that is about to be created and may choose.
func handOverNew(c *cli.Context, settings *config.Config) error {
	// Another runtime may have had a container with this id and have deleted it.
	if _, err := isolation.Find(c.Context, c.String("root"), c.Args().First()); err != nil {
		return err
	}
	runtime, err := isolation.Choose(settings, c.String("bundle"))
	if err != nil || runtime == "" {
		return err
	}
	handed, err := isolation.Record(c.String("root"), c.Args().First(), c.String("bundle"), runtime)
	if err != nil {
		return err
	}
	return callOf(c).Exec(handed)
}

// callOf returns the verb as another runtime is called with it.
func callOf(c *cli.Context) *isolation.Call {
	verb := c.Lineage()[1] // the app's own context, whose arguments are the verb and what follows it
	call := &isolation.Call{Args: verb.Args().Slice(), KeepFDs: c.Int("preserve-fds")}
	for _, name := range []string{"debug", "systemd-cgroup"} {
		if c.Bool(name) {
			call.Flags = append(call.Flags, "--"+name)
		}
	}
	for _, name := range []string{"log", "log-format", "rootless"} {
		if verb.IsSet(name) {
			call.Flags = append(call.Flags, "--"+name+"="+verb.String(name))
		}
	}
	return call
}

// exitError is an error with an exit code of its own. With a nil err it is only the code, for
// example a container's.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// fail writes why husk has failed, once to the log and once to stderr, and ends it.
func fail(err error) {
	code := exitFailure
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
		err = exit.err
	}
	if err != nil {
		logrus.Error(err)
		if logrus.StandardLogger().Out != io.Writer(os.Stderr) {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	os.Exit(code)
}

// prepare runs before each verb.
func prepare(c *cli.Context) error {
	if err := setUpLog(c); err != nil {
		return err
	}
	if err := refuseHelp(c); err != nil {
		return err
	}
	// Not the whole command line, which has the environment of exec.
	logrus.Debugf("husk %s (commit %s, build %s): %s", version, commit, build, c.Args().First())
	// The supervisor works in another directory, so the path is made absolute.
	root, err := filepath.Abs(c.String("root"))
	if err != nil {
		return fmt.Errorf("resolve root: %w", err)
	}
	return c.Set("root", root)
}

// setUpLog sets the log up as --log, --log-format and --debug say. By default nothing but one
// line for an error is written, because engines parse the file.
func setUpLog(c *cli.Context) error {
	if c.Bool("debug") {
		logrus.SetLevel(logrus.DebugLevel)
	}
	switch f := c.String("log-format"); f {
	case "", "text":
	case "json":
		logrus.SetFormatter(&logrus.JSONFormatter{})
	default:
		return fmt.Errorf("invalid log-format: %s", f)
	}
	path := c.String("log")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND|os.O_SYNC, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	logrus.SetOutput(f)
	return nil
}

// printTimings prints what --timings asks for when the verb is done; for run that is when the
// container has ended.
func printTimings(c *cli.Context) error {
	if !c.Bool("timings") {
		return nil
	}
	return timings.From(c.Context).Print(c.App.ErrWriter)
}

// exactArgs and minArgs check the number of arguments, with runc's words.
func exactArgs(c *cli.Context, n int) error {
	if c.NArg() == n {
		return nil
	}
	return argsError(c, fmt.Sprintf("requires exactly %d argument(s)", n))
}

func minArgs(c *cli.Context, n int) error {
	if c.NArg() >= n {
		return nil
	}
	return argsError(c, fmt.Sprintf("requires a minimum of %d argument(s)", n))
}

func maxArgs(c *cli.Context, n int) error {
	if c.NArg() <= n {
		return nil
	}
	return argsError(c, fmt.Sprintf("requires a maximum of %d argument(s)", n))
}

func argsError(c *cli.Context, what string) error {
	fmt.Fprint(c.App.Writer, "Incorrect Usage.\n\n")
	if err := cli.ShowSubcommandHelp(c); err != nil {
		return err
	}
	return fmt.Errorf("%s: %q %s", c.App.Name, c.Command.Name, what)
}

func usageError(c *cli.Context, err error, isSubcommand bool) error {
	fmt.Fprintf(c.App.Writer, "Incorrect Usage: %s\n\n", err)
	if isSubcommand {
		if herr := cli.ShowSubcommandHelp(c); herr != nil {
			return herr
		}
		return err
	}
	if herr := cli.ShowAppHelp(c); herr != nil {
		return herr
	}
	return err
}

func commandNotFound(c *cli.Context, name string) {
	fail(unknownCommand(c.App.Commands, name))
}

// formatFlag returns a new flag for each verb that prints a table, because urfave/cli keeps a
// flag's value in the flag itself.
func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Value: "table", Usage: "table or json"}
}

var errFormat = errors.New("invalid format option")

// asTyped are the verbs whose last arguments belong to another program, so that flags among
// them are not husk's.
var asTyped = []string{"exec", "ps"}

// flagsFirst moves flags after a verb's arguments before them, as in `update ID --memory 1G`.
// runc accepts them there, and the parser does not.
func flagsFirst(app *cli.App, args []string) []string {
	flags, commands := app.Flags, app.Commands
	at := 1
	for {
		for at < len(args) && strings.HasPrefix(args[at], "-") {
			at += flagLength(flags, args[at:])
		}
		if at >= len(args) {
			return args
		}
		i := slices.IndexFunc(commands, func(c *cli.Command) bool { return c.HasName(args[at]) })
		if i < 0 || slices.Contains(asTyped, commands[i].Name) {
			return args
		}
		at++
		flags, commands = commands[i].Flags, commands[i].Subcommands
		if len(commands) == 0 {
			return slices.Concat(args[:at], reorder(flags, args[at:]))
		}
	}
}

// reorder moves the flags of one verb before its arguments.
func reorder(known []cli.Flag, args []string) []string {
	var flags, others []string
	for rest := args; len(rest) > 0; {
		switch {
		case rest[0] == "--":
			others = append([]string{"--"}, append(others, rest[1:]...)...)
			rest = nil
		case strings.HasPrefix(rest[0], "-") && rest[0] != "-":
			n := flagLength(known, rest)
			flags = append(flags, rest[:n]...)
			rest = rest[n:]
		default:
			others = append(others, rest[0])
			rest = rest[1:]
		}
	}
	return slices.Concat(flags, others)
}

// flagLength returns how many elements the flag at the beginning of args has: two if its value
// is a separate element. For an unknown flag it returns one; the parser refuses the flag.
func flagLength(flags []cli.Flag, args []string) int {
	name := strings.TrimPrefix(strings.TrimPrefix(args[0], "-"), "-")
	for _, f := range flags {
		if _, isBool := f.(*cli.BoolFlag); !isBool && slices.Contains(f.Names(), name) {
			return min(2, len(args))
		}
	}
	return 1
}
