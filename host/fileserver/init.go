package fileserver

import (
	"golang.org/x/sys/unix"
)

// A session is what INIT has agreed on.
type session struct {
	minor uint32 // the client's
	flags uint64 // what both want
}

func (s *Server) has(flag uint64) bool {
	session := s.session.Load()
	return session != nil && session.flags&flag != 0
}

// wanted are the flags of INIT that the server takes where the client offers them.
func (s *Server) wanted() uint64 {
	flags := uint64(initAsyncRead | initAtomicTruncate | initBigWrites | initDontMask | initAutoInvalidate |
		initReaddirplus | initReaddirplusAuto | initAsyncDirect | initParallelDirs | initMaxPages |
		initSubmounts | initKillPrivV2 | initSetxattrExt | initExt)
	if !s.export.NoXattr {
		flags |= initPosixACL
	}
	if !s.export.LocalLocks {
		flags |= initPosixLocks | initFlockLocks
	}
	if s.export.Cache.Writeback {
		flags |= initWritebackCache
	}
	if s.export.Cache.Symlinks {
		flags |= initCacheSymlinks
	}
	return flags
}

// initialise begins a session; one that was there ends.
func (s *Server) initialise(c *call) unix.Errno {
	major, minor := c.u32(), c.u32()
	readahead := c.u32()
	offered := uint64(c.u32())
	if c.short || major < protocolMajor || major == protocolMajor && minor < protocolMinMinor {
		return unix.EPROTO
	}
	if major > protocolMajor { // the client asks again with the version it is told
		c.put32(protocolMajor)
		c.put32(protocolMinor)
		c.pad(initOutSize - 8)
		return 0
	}
	if offered&initExt != 0 {
		offered |= uint64(c.u32()) << 32
	}
	if c.short {
		return unix.EPROTO
	}
	s.reset()
	flags := offered & s.wanted()
	s.session.Store(&session{minor: minor, flags: flags})
	c.put32(protocolMajor)
	c.put32(min(minor, protocolMinor))
	c.put32(readahead)
	c.put32(uint32(flags))
	c.put32(64 | 48<<16) // max_background, congestion_threshold
	c.put32(s.export.Limits.Write)
	c.put32(1) // time_gran: nanoseconds
	c.put32(s.export.Limits.Write / 4096)
	c.put32(uint32(flags >> 32))
	c.pad(initOutSize - 36)
	return 0
}

func (s *Server) destroy(*call) unix.Errno {
	s.reset()
	return 0
}
