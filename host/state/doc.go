// Package state is what husk remembers of a container between two calls: the
// OCI status words, the one table of which verb is allowed in which status, the
// saved file, its lock and its atomic write.
package state
