package fileserver

// operations are the requests that are answered, by their code. ENOSYS, which the others
// get, tells the client's kernel to do without.
var operations = [operationCount]operation{
	opInit:        {handle: (*Server).initialise, answer: initOutSize},
	opDestroy:     {handle: (*Server).destroy},
	opLookup:      {handle: (*Server).lookup, answer: entrySize},
	opForget:      {handle: (*Server).forget, silent: true},
	opBatchForget: {handle: (*Server).batchForget, silent: true},
	opGetattr:     {handle: (*Server).getattr, answer: attrOutSize},
	opReadlink:    {handle: (*Server).readlink},
	opOpen:        {handle: (*Server).open, answer: openOutSize},
	opRead:        {handle: (*Server).read},
	opRelease:     {handle: (*Server).release},
	opOpendir:     {handle: (*Server).opendir, answer: openOutSize},
	opReaddir:     {handle: (*Server).readdir},
	opReaddirplus: {handle: (*Server).readdirplus},
	opReleasedir:  {handle: (*Server).release},
}
