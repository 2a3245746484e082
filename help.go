package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
	"github.com/xrash/smetrics"
)

// helpCommand is husk's own: the library's would be a verb of each verb as well, and
// a container named help could not be addressed.
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

var versionCommand = &cli.Command{
	Name:         "version",
	Usage:        "print the version",
	OnUsageError: usageError,
	Action: func(c *cli.Context) error {
		if err := exactArgs(c, 0); err != nil {
			return err
		}
		cli.ShowVersion(c)
		return nil
	},
}

// exitNoCommand is runc's, as is the text.
const exitNoCommand = 3

// unknownCommand says that there is no such verb, and which may be meant.
func unknownCommand(commands []*cli.Command, name string) error {
	//nolint:staticcheck // an upper-case letter
	err := fmt.Errorf("No help topic for '%s'", name)
	if near := nearest(commands, name); near != "" {
		err = fmt.Errorf("%w: did you mean %q?", err, near)
	}
	return &exitError{code: exitNoCommand, err: err}
}

// nearest is the verb that is so like name that it is likely to be meant.
func nearest(commands []*cli.Command, name string) string {
	// The boost for a common beginning is what its inventor gives; two words above
	// the limit differ by a letter or two.
	const boost, prefix, alike = 0.7, 4, 0.87
	best, found := alike, ""
	for _, c := range commands {
		if like := smetrics.JaroWinkler(c.Name, name, boost, prefix); like > best && !c.Hidden {
			best, found = like, c.Name
		}
	}
	return found
}
