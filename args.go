package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// asTyped are the verbs whose arguments end with those of another program, whose
// flags are not husk's.
var asTyped = []string{"exec", "ps"}

// flagsFirst moves the flags that stand behind a verb's arguments before them, as
// in `update ID --memory 1G`: runc takes them there, and the parser does not.
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

// reorder puts the flags of one verb before its arguments.
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

// flagLength is of how many elements the flag that args begin with is: two where
// its value is one of its own. One that is not known is one, for the parser to
// refuse.
func flagLength(flags []cli.Flag, args []string) int {
	name := strings.TrimPrefix(strings.TrimPrefix(args[0], "-"), "-")
	for _, f := range flags {
		if _, isBool := f.(*cli.BoolFlag); !isBool && slices.Contains(f.Names(), name) {
			return min(2, len(args))
		}
	}
	return 1
}
