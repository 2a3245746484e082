// Package state is what husk remembers of a container between two calls: the OCI status, the
// table that says which verb is allowed in which status, the saved file with its lock and
// atomic writing.
package state
