package create

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/huskvm/husk/host/supervisor/control"
	"github.com/huskvm/husk/host/supervisor/launch"
	"github.com/huskvm/husk/host/supervisor/standin"
	"github.com/huskvm/husk/linux/namespaces"
	"github.com/huskvm/husk/linux/syscalls"
)

// startStandIn starts the process whose pid is the container's if there is a user namespace,
// and changes the supervisor's options so that the supervisor joins the stand-in's namespaces.
// The caller closes the files that are passed to the supervisor.
func (n *creation) startStandIn(supervisor *launch.Options) (err error) {
	shadow := n.plan.Shadow
	ours, theirs, err := syscalls.SocketPair(standin.FDPeer)
	if err != nil {
		return fmt.Errorf("start stand-in: %w", err)
	}
	defer theirs.Close()
	supervisor.Files = append(supervisor.Files, launch.NamedFile{Name: standin.FDPeer, File: ours})
	n.standIn, err = launch.Start(launch.Options{
		Role: launch.StandIn, Args: shadow.Args,
		Namespaces: append([]specs.LinuxNamespace{*shadow.UserNS}, shadow.Namespaces...),
		UIDMaps:    idMaps(n.plan.UserNS.UID), GIDMaps: idMaps(n.plan.UserNS.GID),
		Files: []launch.NamedFile{{Name: standin.FDPeer, File: theirs}},
	})
	if err != nil {
		return err
	}
	n.standIn.Expect(control.AnswerTimeout)
	if err = n.standIn.Bootstrap(struct{}{}); err != nil {
		return err
	}
	pid := n.standIn.Process.Pid
	mounts, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	supervisor.Files = append(supervisor.Files, launch.NamedFile{Name: standin.FDMounts, File: mounts})
	supervisor.DoubleFork = true
	n.boot.StandInPID = pid
	supervisor.Namespaces = nil
	for _, ns := range shadow.Namespaces {
		if ns.Type == specs.PIDNamespace && ns.Path == "" {
			n.boot.StandInPID = 1
		}
		if ns.Type != specs.MountNamespace {
			ns.Path = fmt.Sprintf("/proc/%d/ns/%s", pid, namespaces.File(ns.Type))
		}
		supervisor.Namespaces = append(supervisor.Namespaces, ns)
	}
	if adj := shadow.OOMScoreAdj; adj != nil {
		// As for the supervisor: an error is ignored, because the guest has its own value.
		_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(*adj)), 0)
	}
	return nil
}

func idMaps(maps []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var all []syscall.SysProcIDMap
	for _, m := range maps {
		all = append(all, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return all
}
