package fileserver

// operations are the requests that are answered, by their code. ENOSYS, which the others
// get, tells the client's kernel to do without.
var operations = [operationCount]operation{
	opInit:      {handle: (*Server).initialise, answer: initOutSize},
	opDestroy:   {handle: (*Server).destroy},
	opInterrupt: {handle: (*Server).interrupt, silent: true},

	opLookup:      {handle: (*Server).lookup, answer: entrySize},
	opForget:      {handle: (*Server).forget, silent: true},
	opBatchForget: {handle: (*Server).batchForget, silent: true},
	opReadlink:    {handle: (*Server).readlink},

	opGetattr: {handle: (*Server).getattr, answer: attrOutSize},
	opSetattr: {handle: (*Server).setattr, answer: attrOutSize, change: true},
	opStatx:   {handle: (*Server).statxAnswer, answer: statxOutSize},
	opStatfs:  {handle: (*Server).statfs, answer: statfsOutSize},
	opSyncfs:  {handle: (*Server).syncfs},

	opMknod:   {handle: (*Server).mknod, answer: entrySize, change: true},
	opMkdir:   {handle: (*Server).mkdir, answer: entrySize, change: true},
	opSymlink: {handle: (*Server).symlink, answer: entrySize, change: true},
	opCreate:  {handle: (*Server).create, answer: entrySize + openOutSize, change: true},
	opTmpfile: {handle: (*Server).tmpfile, answer: entrySize + openOutSize, change: true},
	opLink:    {handle: (*Server).linkNode, answer: entrySize, change: true},
	opUnlink:  {handle: (*Server).unlink, change: true},
	opRmdir:   {handle: (*Server).rmdir, change: true},
	opRename:  {handle: (*Server).rename, change: true},
	opRename2: {handle: (*Server).rename2, change: true},

	opOpen:          {handle: (*Server).open, answer: openOutSize},
	opRead:          {handle: (*Server).read},
	opWrite:         {handle: (*Server).write, answer: 8, change: true},
	opFlush:         {handle: (*Server).flush},
	opRelease:       {handle: (*Server).release},
	opFsync:         {handle: (*Server).fsync},
	opFallocate:     {handle: (*Server).fallocate, change: true},
	opIoctl:         {handle: (*Server).ioctl, answer: ioctlOutSize},
	opLseek:         {handle: (*Server).lseek, answer: 8},
	opCopyFileRange: {handle: (*Server).copyFileRange, answer: 8, change: true},

	opOpendir:     {handle: (*Server).opendir, answer: openOutSize},
	opReaddir:     {handle: (*Server).readdir},
	opReaddirplus: {handle: (*Server).readdirplus},
	opReleasedir:  {handle: (*Server).release},
	opFsyncdir:    {handle: (*Server).fsync},

	opGetxattr:    {handle: (*Server).getxattr},
	opSetxattr:    {handle: (*Server).setxattr, change: true},
	opListxattr:   {handle: (*Server).listxattr},
	opRemovexattr: {handle: (*Server).removexattr, change: true},

	opGetlk:  {handle: (*Server).getlk, answer: lockOutSize},
	opSetlk:  {handle: (*Server).setlk},
	opSetlkw: {handle: (*Server).setlkw},
}
