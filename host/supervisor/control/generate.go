// Package control connects a cli verb or an exec process with the supervisor of a container. It
// has the service (control.proto) and its client.
package control

//go:generate protoc --proto_path=. --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative control.proto
