package template

import (
	"strings"

	"github.com/huskvm/husk/host/config"
)

// Scope says with which containers a container may share a template.
type Scope struct {
	// Alone: the container shares with no other and boots.
	Alone bool
	// Tenant is named by the settings, and Part by the container's own annotation. Containers
	// share only if both are equal. Both are empty for containers for which nothing was named.
	Tenant, Part string
}

// ScopeOf returns the scope of a container with these annotations. setting is
// config.Config.TemplateScope. own is the container's own wish: "container", "tenant:NAME" or
// empty. It can only narrow what the setting gives.
func ScopeOf(setting, own string, annotations map[string]string) Scope {
	var s Scope
	if name, ok := strings.CutPrefix(setting, config.ScopeAnnotation); ok {
		s.Tenant = annotations[name]
		s.Alone = s.Tenant == "" // a container without a tenant shares with no other
	}
	s.Part = strings.TrimPrefix(own, "tenant:")
	if setting == config.ScopeContainer || own == config.ScopeContainer {
		return Scope{Alone: true}
	}
	return s
}
