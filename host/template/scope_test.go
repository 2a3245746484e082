package template

import "testing"

const key = "example.org/tenant"

func TestScopeOf(t *testing.T) {
	for _, tc := range []struct {
		setting, own, tenant string
		want                 Scope
	}{
		{"host", "", "", Scope{}},
		{"host", "", "a", Scope{}},
		{"host", "tenant:x", "", Scope{Part: "x"}},
		{"host", "container", "", Scope{Alone: true}},
		{"container", "", "a", Scope{Alone: true}},
		{"container", "tenant:x", "a", Scope{Alone: true}},
		{"annotation:" + key, "", "a", Scope{Tenant: "a"}},
		{"annotation:" + key, "", "", Scope{Alone: true}},
		{"annotation:" + key, "tenant:x", "a", Scope{Tenant: "a", Part: "x"}},
		{"annotation:" + key, "tenant:a", "", Scope{Alone: true, Part: "a"}},
		{"annotation:" + key, "container", "a", Scope{Alone: true}},
	} {
		t.Run(tc.setting+" own:"+tc.own+" tenant:"+tc.tenant, func(t *testing.T) {
			annotations := map[string]string{}
			if tc.tenant != "" {
				annotations[key] = tc.tenant
			}
			if got := ScopeOf(tc.setting, tc.own, annotations); got != tc.want {
				t.Errorf("%+v: %+v", tc, got)
			}
		})
	}
}

// TestOwnWishNeverWidens: containers that the setting separates share no template, whatever
// they ask for themselves.
func TestOwnWishNeverWidens(t *testing.T) {
	kindOf := func(s Scope) string {
		k := kind()
		k.Tenant, k.Part = s.Tenant, s.Part
		return k.Key()
	}
	wishes := []string{"", "container", "tenant:a", "tenant:b", "tenant:host", "tenant:a/b"}
	for _, setting := range []string{"host", "container", "annotation:" + key} {
		for _, one := range []string{"", "a", "b", "a/b"} {
			for _, two := range []string{"", "a", "b", "a/b"} {
				of := func(tenant, wish string) Scope { return ScopeOf(setting, wish, map[string]string{key: tenant}) }
				plainOne, plainTwo := of(one, ""), of(two, "")
				apart := plainOne.Alone || plainTwo.Alone || kindOf(plainOne) != kindOf(plainTwo)
				for _, w := range wishes {
					for _, v := range wishes {
						a, b := of(one, w), of(two, v)
						if together := !a.Alone && !b.Alone && kindOf(a) == kindOf(b); together && (apart || w != v) {
							t.Errorf("setting %s: %q with %q and %q with %q share a template", setting, one, w, two, v)
						}
					}
				}
			}
		}
	}
}

// TestScopesHaveKeys: different scopes have different keys.
func TestScopesHaveKeys(t *testing.T) {
	keys := map[string]Scope{}
	for _, s := range []Scope{{}, {Tenant: "a"}, {Part: "a"}, {Tenant: "a", Part: "a"}, {Tenant: "ab"}, {Tenant: "a", Part: "b"}} {
		k := kind()
		k.Tenant, k.Part = s.Tenant, s.Part
		if other, taken := keys[k.Key()]; taken {
			t.Errorf("%+v has the key of %+v", s, other)
		}
		keys[k.Key()] = s
	}
}
