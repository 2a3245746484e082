package main

import (
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// helpCommand replaces the library's, which would also be a verb of each verb, so that a
// container named help could not be addressed.
var helpCommand = &cli.Command{
	Name:         "help",
	Aliases:      []string{"h"},
	Usage:        "print the list of verbs, or the help of one",
	ArgsUsage:    "[verb]",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := maxArgs(c, 1); err != nil {
			return err
		}
		verb := c.Args().First()
		if verb == "" {
			return cli.ShowAppHelp(c)
		}
		if c.App.Command(verb) == nil {
			return unknownCommand(c.App.Commands, verb)
		}
		return cli.ShowCommandHelp(c, verb)
	},
}

// exitNoCommand is runc's exit code for an unknown command. The text is runc's too.
const exitNoCommand = 3

// unknownCommand returns the error for a verb that does not exist, with the one that may be
// meant.
func unknownCommand(commands []*cli.Command, name string) error {
	//nolint:staticcheck // an upper-case letter
	err := fmt.Errorf("No help topic for '%s'", name)
	if near := nearest(commands, name); near != "" {
		err = fmt.Errorf("%w: did you mean %q?", err, near)
	}
	return &exitError{code: exitNoCommand, err: err}
}

// nearest returns the verb that resembles name so much that it is probably meant; "" if none
// does.
func nearest(commands []*cli.Command, name string) string {
	// boost for a common prefix has the value of the algorithm's author. Two words above the
	// limit differ by a letter or two.
	const boost, prefix, alike = 0.7, 4, 0.87
	best, found := alike, ""
	for _, c := range commands {
		if like := smetrics.JaroWinkler(c.Name, name, boost, prefix); like > best && !c.Hidden {
			best, found = like, c.Name
		}
	}
	return found
}

// examples are shown in the help and on the man page of each verb.
var examples = map[string][]string{
	"create":       {"husk create --bundle /srv/web web"},
	"start":        {"husk start web"},
	"state":        {"husk state web"},
	"kill":         {"husk kill web", "husk kill --all web KILL"},
	"delete":       {"husk delete web", "husk delete --force web"},
	"run":          {"husk run --bundle /srv/web web", "husk --timings run --detach --bundle /srv/web web"},
	"exec":         {"husk exec --tty web sh", "husk exec --user 1000:1000 --env LANG=C web id"},
	"ps":           {"husk ps web", "husk ps --format json web"},
	"list":         {"husk list", "husk --root /run/docker/runtime-runc/moby list --quiet"},
	"pause":        {"husk pause web"},
	"resume":       {"husk resume web"},
	"update":       {"husk update --memory 536870912 web", "husk update --cpu-quota 50000 --cpu-period 100000 web"},
	"events":       {"husk events --stats web", "husk events --interval 10s web"},
	"metrics":      {"husk metrics", "husk --root /run/docker/runtime-runc/moby metrics --output /var/lib/node_exporter/husk.prom"},
	"features":     {"husk features"},
	"spec":         {"husk spec --bundle /srv/web"},
	"check":        {"husk check", "husk check --run"},
	"config":       {"husk config show", "husk config sample > /etc/husk/config.toml"},
	"template":     {"husk template list", "husk template create --memory 2048", "husk template prune --unused 24h"},
	"install":      {"husk install docker", "husk install --dry-run podman"},
	"uninstall":    {"husk uninstall docker"},
	"failures":     {"husk failures", "husk failures web"},
	"version":      {"husk version"},
	"help":         {"husk help kill"},
	"debug-report": {"husk debug-report > report.txt"},
}

// withExamples returns a verb's description followed by its examples.
func withExamples(verb, description string) string {
	lines := examples[verb]
	if len(lines) == 0 {
		return description
	}
	if description != "" {
		description += "\n\n"
	}
	return description + "Examples:\n   " + strings.Join(lines, "\n   ")
}
