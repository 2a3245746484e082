//go:build pages

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
)

// With the build tag pages, which no released husk has, the program is not a runtime: it writes
// the man page and the shell completions, made from the tree of verbs and flags, to the
// directory that is its only argument.
func init() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: pages DIR"))
	}
	if err := writePages(newApp(), os.Args[1]); err != nil {
		fail(err)
	}
	os.Exit(0)
}

func writePages(app *cli.App, dir string) error {
	// The hidden verbs are for husk itself.
	app.Setup()
	man, err := app.ToManWithSection(8)
	if err != nil {
		return fmt.Errorf("make man page: %w", err)
	}
	fish, err := app.ToFishCompletion()
	if err != nil {
		return fmt.Errorf("make fish completion: %w", err)
	}
	for name, content := range map[string]string{
		"husk.8": man, "husk.fish": fish, "husk.bash": bashCompletion(app), "_husk": zshCompletion(app),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write page: %w", err)
		}
	}
	return nil
}

// words returns what may follow a verb, or husk if verbs are the top ones: the names of the
// visible flags with their dashes, and of the verbs below.
func words(flags []cli.Flag, verbs []*cli.Command) []string {
	var all []string
	for _, f := range flags {
		if v, ok := f.(cli.VisibleFlag); ok && !v.IsVisible() {
			continue
		}
		for _, name := range f.Names() {
			if len(name) == 1 {
				all = append(all, "-"+name)
			} else {
				all = append(all, "--"+name)
			}
		}
	}
	for _, v := range verbs {
		if !v.Hidden {
			all = append(all, v.Name)
		}
	}
	return all
}

// eachVerb calls f for every visible verb. A verb below a verb has both names.
func eachVerb(app *cli.App, f func(name string, words []string)) {
	for _, v := range app.Commands {
		if v.Hidden {
			continue
		}
		f(v.Name, words(v.Flags, v.Subcommands))
		for _, sub := range v.Subcommands {
			f(v.Name+" "+sub.Name, words(sub.Flags, nil))
		}
	}
}

// bashCompletion offers what may follow the verbs typed so far and, after verbs that take one,
// the ids of containers.
func bashCompletion(app *cli.App) string {
	var b strings.Builder
	b.WriteString(`# bash completion for husk, made from its verbs and flags
_husk() {
	local cur=${COMP_WORDS[COMP_CWORD]} word verb= candidates
	for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
		case $word in
		-*) ;;
		*) case "$verb $word" in
`)
	var verbs []string
	eachVerb(app, func(name string, _ []string) { verbs = append(verbs, name) })
	for _, v := range verbs {
		if parent, sub, ok := strings.Cut(v, " "); ok {
			fmt.Fprintf(&b, "\t\t\t\"%s %s\") verb=\"%s\" ;;\n", parent, sub, v)
		} else {
			fmt.Fprintf(&b, "\t\t\t\" %s\") verb=%s ;;\n", v, v)
		}
	}
	b.WriteString("\t\t\tesac ;;\n\t\tesac\n\tdone\n\tcase $verb in\n")
	fmt.Fprintf(&b, "\t\"\") candidates=%q ;;\n", strings.Join(words(app.Flags, app.Commands), " "))
	eachVerb(app, func(name string, w []string) {
		fmt.Fprintf(&b, "\t%q) candidates=%q ;;\n", name, strings.Join(w, " "))
	})
	b.WriteString(`	esac
	case $verb in
	start|state|kill|delete|exec|ps|pause|resume|update|events) candidates+=" $(husk list --quiet 2>/dev/null)" ;;
	esac
	COMPREPLY=($(compgen -W "$candidates" -- "$cur"))
}
complete -o default -F _husk husk
`)
	return b.String()
}

// zshCompletion uses the completion for bash, which zsh can run.
func zshCompletion(app *cli.App) string {
	return "#compdef husk\nautoload -Uz bashcompinit && bashcompinit\n" + bashCompletion(app)
}
