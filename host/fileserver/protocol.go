package fileserver

// What of the FUSE protocol (include/uapi/linux/fuse.h of Linux, version 7.45) the server
// speaks. Numbers are in the byte order of the machine, which is little-endian on every
// machine that husk runs on.

const (
	protocolMajor    = 7
	protocolMinor    = 39 // what the server tells a client that speaks more
	protocolMinMinor = 31 // Linux 5.4
)

// Sizes of the messages' fixed parts, in bytes.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	attrSize      = 88
	entrySize     = 40 + attrSize
	attrOutSize   = 16 + attrSize
	openOutSize   = 16
	direntSize    = 24 // without the name
	statxOutSize  = 32 + 256
	statfsOutSize = 80
	lockOutSize   = 24
	initOutSize   = 64
)

// Operation codes.
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opFlush         = 25
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opGetlk         = 31
	opSetlk         = 32
	opSetlkw        = 33
	opCreate        = 35
	opInterrupt     = 36
	opDestroy       = 38
	opIoctl         = 39
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opSyncfs        = 50
	opTmpfile       = 51
	opStatx         = 52
	operationCount  = 64
)

// Flags of INIT: the low half is fuse_init_in.flags, the high half flags2.
const (
	initAsyncRead       = 1 << 0
	initPosixLocks      = 1 << 1
	initAtomicTruncate  = 1 << 3
	initBigWrites       = 1 << 5
	initDontMask        = 1 << 6
	initFlockLocks      = 1 << 10
	initAutoInvalidate  = 1 << 12
	initReaddirplus     = 1 << 13
	initReaddirplusAuto = 1 << 14
	initAsyncDirect     = 1 << 15
	initWritebackCache  = 1 << 16
	initParallelDirs    = 1 << 18
	initPosixACL        = 1 << 20
	initMaxPages        = 1 << 22
	initCacheSymlinks   = 1 << 23
	initSubmounts       = 1 << 27
	initKillPrivV2      = 1 << 28
	initSetxattrExt     = 1 << 29
	initExt             = 1 << 30
)

// Flags of other messages.
const (
	attrSubmount = 1 << 0 // fuse_attr.flags: the root of another mount than its parent's

	openKeepCache      = 1 << 1 // fuse_open_out.open_flags
	openCacheDir       = 1 << 3
	openKillPrivileges = 1 << 0 // fuse_open_in.open_flags

	setMode           = 1 << 0 // fuse_setattr_in.valid
	setUID            = 1 << 1
	setGID            = 1 << 2
	setSize           = 1 << 3
	setAtime          = 1 << 4
	setMtime          = 1 << 5
	setHandle         = 1 << 6
	setAtimeNow       = 1 << 7
	setMtimeNow       = 1 << 8
	setKillPrivileges = 1 << 11

	writeCache          = 1 << 0 // fuse_write_in.write_flags: from the page cache, at its offset
	writeKillPrivileges = 1 << 2

	fsyncData         = 1 << 0 // fuse_fsync_in.fsync_flags
	lockFlock         = 1 << 0 // fuse_lk_in.lk_flags
	setxattrKillGroup = 1 << 0 // fuse_setxattr_in.setxattr_flags
)

// rootID is the node that a client begins with.
const rootID = 1
