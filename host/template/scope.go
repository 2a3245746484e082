package template

import (
	"strings"

	"github.com/huskvm/husk/host/config"
)

// Scope says with whom a container may share a template.
type Scope struct {
	// Alone is set for a container that shares with nobody: it boots.
	Alone bool
	// Tenant is whom the settings make it belong to, and Part what its own annotation
	// makes of that: it shares with those of whom both are the same. Empty are those
	// that nobody was named for.
	Tenant, Part string
}

// ScopeOf returns the scope of a container with these annotations. setting is
// config.Config.TemplateScope; own is the container's own wish, "container",
// "tenant:NAME" or empty, which can only make narrower what the setting gives.
func ScopeOf(setting, own string, annotations map[string]string) Scope {
	var s Scope
	if name, ok := strings.CutPrefix(setting, config.ScopeAnnotation); ok {
		s.Tenant = annotations[name]
		s.Alone = s.Tenant == "" // of nobody: the others must not be its company
	}
	s.Part = strings.TrimPrefix(own, "tenant:")
	if setting == config.ScopeContainer || own == config.ScopeContainer {
		return Scope{Alone: true}
	}
	return s
}
