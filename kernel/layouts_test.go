package kernel

import (
	"errors"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ovmigrate/ovmigrate/kernel/types"
)

// checker is a Layout of any type.
type checker interface {
	Check(types.Source) error
}

// allLayouts lists every package-level Layout, so that each can be checked against
// the types of real kernels. TestLayoutsListed keeps it complete.
var allLayouts = map[string]checker{
	"acceptQueueLayout":       acceptQueueLayout,
	"addressSpaceLayout":      addressSpaceLayout,
	"alarmLayout":             alarmLayout,
	"anonVMANameLayout":       anonVMANameLayout,
	"armContextLayout":        armContextLayout,
	"backingFileLayout":       backingFileLayout,
	"binAttributeLayout":      binAttributeLayout,
	"bpfProgLayout":           bpfProgLayout,
	"btfLayout":               btfLayout,
	"btfModuleLayout":         btfModuleLayout,
	"bucketTableLayout":       bucketTableLayout,
	"cfsCountsLayout":         cfsCountsLayout,
	"cfsRQLayout":             cfsRQLayout,
	"cgroupLayout":            cgroupLayout,
	"cgroupRootFieldsLayout":  cgroupRootFieldsLayout,
	"cgroupRootLayout":        cgroupRootLayout,
	"cgroupSubsysLayout":      cgroupSubsysLayout,
	"cgroupTreeLayout":        cgroupTreeLayout,
	"cgrpLinkCsetLayout":      cgrpLinkCsetLayout,
	"cgrpLinkLayout":          cgrpLinkLayout,
	"clocksourceLayout":       clocksourceLayout,
	"cpusetLayout":            cpusetLayout,
	"credLayout":              credLayout,
	"cssLayout":               cssLayout,
	"cssSetLayout":            cssSetLayout,
	"cssSetTasksLayout":       cssSetTasksLayout,
	"dentryLayout":            dentryLayout,
	"dentryOpsLayout":         dentryOpsLayout,
	"dlCountsLayout":          dlCountsLayout,
	"dlOrderLayout":           dlOrderLayout,
	"dlRQLayout":              dlRQLayout,
	"epitemLayout":            epitemLayout,
	"eventfdLayout":           eventfdLayout,
	"eventpollLayout":         eventpollLayout,
	"fairEntityLayout":        fairEntityLayout,
	"fdtableLayout":           fdtableLayout,
	"fibAliasLayout":          fibAliasLayout,
	"fibInfoLayout":           fibInfoLayout,
	"fibNHCommonLayout":       fibNHCommonLayout,
	"fibTableLayout":          fibTableLayout,
	"fileLayout":              fileLayout,
	"fileLockContextLayout":   fileLockContextLayout,
	"fileLockLayout":          fileLockLayout,
	"fileOpsLayout":           fileOpsLayout,
	"filesLayout":             filesLayout,
	"fownLayout":              fownLayout,
	"fpstateLayout":           fpstateLayout,
	"freeAreaLayout":          freeAreaLayout,
	"fsStructLayout":          fsStructLayout,
	"fsTypeLayout":            fsTypeLayout,
	"fsTypeOwnerLayout":       fsTypeOwnerLayout,
	"groupInfoLayout":         groupInfoLayout,
	"hrtimerBaseLayout":       hrtimerBaseLayout,
	"hrtimerClockBaseLayout":  hrtimerClockBaseLayout,
	"hrtimerLayout":           hrtimerLayout,
	"hstateLayout":            hstateLayout,
	"hugetlbCgroupLayout":     hugetlbCgroupLayout,
	"idExtentLayout":          idExtentLayout,
	"idrLayout":               idrLayout,
	"inDeviceLayout":          inDeviceLayout,
	"inIfaddrLayout":          inIfaddrLayout,
	"inactiveTaskFrameLayout": inactiveTaskFrameLayout,
	"inet6DevLayout":          inet6DevLayout,
	"inet6IfaddrLayout":       inet6IfaddrLayout,
	"inetHashinfoLayout":      inetHashinfoLayout,
	"inetListenBucketLayout":  inetListenBucketLayout,
	"inetSockLayout":          inetSockLayout,
	"inodeLayout":             inodeLayout,
	"ioContextLayout":         ioContextLayout,
	"ipcNamespaceLayout":      ipcNamespaceLayout,
	"ipcPermLayout":           ipcPermLayout,
	"ipv6PinfoLayout":         ipv6PinfoLayout,
	"itimersLayout":           itimersLayout,
	"kItimerLayout":           kItimerLayout,
	"kernelCPUStatLayout":     kernelCPUStatLayout,
	"kernelParamLayout":       kernelParamLayout,
	"kernelSymbolLayout":      kernelSymbolLayout,
	"kernfsNodeLayout":        kernfsNodeLayout,
	"kernfsSuperInfoLayout":   kernfsSuperInfoLayout,
	"keyVectorLayout":         keyVectorLayout,
	"kmemCacheNodeLayout":     kmemCacheNodeLayout,
	"kparamStringLayout":      kparamStringLayout,
	"mapleNodeLayout":         mapleNodeLayout,
	"mapleTreeLayout":         mapleTreeLayout,
	"memCgroupLayout":         memCgroupLayout,
	"memNodeLayout":           memNodeLayout,
	"messageLayout":           messageLayout,
	"mmLayout":                mmLayout,
	"mntNamespaceLayout":      mntNamespaceLayout,
	"modKallsymsLayout":       modKallsymsLayout,
	"moduleLayout":            moduleLayout,
	"moduleMemoryLayout":      moduleMemoryLayout,
	"moduleTextLayout":        moduleTextLayout,
	"moduleUseLayout":         moduleUseLayout,
	"mountLayout":             mountLayout,
	"mqTreeNodeLayout":        mqTreeNodeLayout,
	"mqueueLayout":            mqueueLayout,
	"msgQueueLayout":          msgQueueLayout,
	"nTTYLayout":              nTTYLayout,
	"netDeviceLayout":         netDeviceLayout,
	"netLayout":               netLayout,
	"netdevAdjacentLayout":    netdevAdjacentLayout,
	"netlinkSockLayout":       netlinkSockLayout,
	"netlinkTableLayout":      netlinkTableLayout,
	"nexthopLayout":           nexthopLayout,
	"nhInfoLayout":            nhInfoLayout,
	"notesAttrsLayout":        notesAttrsLayout,
	"nsCommonLayout":          nsCommonLayout,
	"nsproxyLayout":           nsproxyLayout,
	"orcEntryLayout":          orcEntryLayout,
	"packetSockLayout":        packetSockLayout,
	"pageCounterLayout":       pageCounterLayout,
	"pageLayout":              pageLayout,
	"pageStateLayout":         pageStateLayout,
	"pidLayout":               pidLayout,
	"pidsCgroupLayout":        pidsCgroupLayout,
	"pingTableLayout":         pingTableLayout,
	"pipeBufferLayout":        pipeBufferLayout,
	"pipeLayout":              pipeLayout,
	"printkDescLayout":        printkDescLayout,
	"printkInfoLayout":        printkInfoLayout,
	"printkRingLayout":        printkRingLayout,
	"procFSInfoLayout":        procFSInfoLayout,
	"procNSOpsLayout":         procNSOpsLayout,
	"processCPULayout":        processCPULayout,
	"psiGroupCPULayout":       psiGroupCPULayout,
	"ptRegsLayout":            ptRegsLayout,
	"ptsFSInfoLayout":         ptsFSInfoLayout,
	"qdiscLayout":             qdiscLayout,
	"qdiscOpsLayout":          qdiscOpsLayout,
	"rawHashinfoLayout":       rawHashinfoLayout,
	"rbNodeLayout":            rbNodeLayout,
	"rbRootCachedLayout":      rbRootCachedLayout,
	"rbWholeLayout":           rbWholeLayout,
	"requestSockLayout":       requestSockLayout,
	"rhashtableLayout":        rhashtableLayout,
	"rhlistHeadLayout":        rhlistHeadLayout,
	"rqListsLayout":           rqListsLayout,
	"rqLockLayout":            rqLockLayout,
	"rtCountsLayout":          rtCountsLayout,
	"rtFlagsLayout":           rtFlagsLayout,
	"rtRQLayout":              rtRQLayout,
	"rtnlLinkOpsLayout":       rtnlLinkOpsLayout,
	"runQueueLayout":          runQueueLayout,
	"schedDLEntityLayout":     schedDLEntityLayout,
	"schedEntityLayout":       schedEntityLayout,
	"schedRTEntityLayout":     schedRTEntityLayout,
	"scmFPListLayout":         scmFPListLayout,
	"seccompFilterLayout":     seccompFilterLayout,
	"semLayout":               semLayout,
	"semSetLayout":            semSetLayout,
	"shmLayout":               shmLayout,
	"shmemInodeLayout":        shmemInodeLayout,
	"shmemSBInfoLayout":       shmemSBInfoLayout,
	"sigActionLayout":         sigActionLayout,
	"sigMasksLayout":          sigMasksLayout,
	"sighandLayout":           sighandLayout,
	"signalAttrLayout":        signalAttrLayout,
	"signalPIDsLayout":        signalPIDsLayout,
	"signalfdLayout":          signalfdLayout,
	"sigqueueLayout":          sigqueueLayout,
	"sigqueueTimerLayout":     sigqueueTimerLayout,
	"skbFragLayout":           skbFragLayout,
	"skbLayout":               skbLayout,
	"skbSharedInfoLayout":     skbSharedInfoLayout,
	"slabCacheLayout":         slabCacheLayout,
	"slabLayout":              slabLayout,
	"sockCommonLayout":        sockCommonLayout,
	"sockFprogLayout":         sockFprogLayout,
	"sockLayout":              sockLayout,
	"sockOptLayout":           sockOptLayout,
	"socketLayout":            socketLayout,
	"superBlockLayout":        superBlockLayout,
	"taskAttrLayout":          taskAttrLayout,
	"taskCredLayout":          taskCredLayout,
	"taskGroupEntitiesLayout": taskGroupEntitiesLayout,
	"taskGroupLayout":         taskGroupLayout,
	"taskGroupQueuesLayout":   taskGroupQueuesLayout,
	"taskLayout":              taskLayout,
	"taskPSILayout":           taskPSILayout,
	"taskQueuedLayout":        taskQueuedLayout,
	"taskSchedLayout":         taskSchedLayout,
	"taskSeccompLayout":       taskSeccompLayout,
	"tcpCongestionOpsLayout":  tcpCongestionOpsLayout,
	"tcpLayout":               tcpLayout,
	"tcpSKBCBLayout":          tcpSKBCBLayout,
	"tcpSeqLayout":            tcpSeqLayout,
	"termiosLayout":           termiosLayout,
	"threadCPULayout":         threadCPULayout,
	"threadSPLayout":          threadSPLayout,
	"threadStateLayout":       threadStateLayout,
	"tickSchedLayout":         tickSchedLayout,
	"timeNSLayout":            timeNSLayout,
	"timeWaitLayout":          timeWaitLayout,
	"timekeeperLayout":        timekeeperLayout,
	"timerfdLayout":           timerfdLayout,
	"tkReadBaseLayout":        tkReadBaseLayout,
	"trieLayout":              trieLayout,
	"ttyDriverLayout":         ttyDriverLayout,
	"ttyLayout":               ttyLayout,
	"ttyLdiscLayout":          ttyLdiscLayout,
	"ttyLdiscOpsLayout":       ttyLdiscOpsLayout,
	"ttyPrivateLayout":        ttyPrivateLayout,
	"udpSlotLayout":           udpSlotLayout,
	"udpSockLayout":           udpSockLayout,
	"udpTableLayout":          udpTableLayout,
	"unixAddressLayout":       unixAddressLayout,
	"unixSKBParmsLayout":      unixSKBParmsLayout,
	"unixSockLayout":          unixSockLayout,
	"upidLayout":              upidLayout,
	"userNSLayout":            userNSLayout,
	"utsLayout":               utsLayout,
	"vdsoImageLayout":         vdsoImageLayout,
	"vfsmountLayout":          vfsmountLayout,
	"vmEventStateLayout":      vmEventStateLayout,
	"vmSpecialMappingLayout":  vmSpecialMappingLayout,
	"vmaLayout":               vmaLayout,
	"winsizeLayout":           winsizeLayout,
	"xaNodeLayout":            xaNodeLayout,
	"xarrayLayout":            xarrayLayout,
	"zoneCPUStatLayout":       zoneCPUStatLayout,
	"zoneLayout":              zoneLayout,
}

// optionalLayouts are of structures that some kernels do without.
var optionalLayouts = map[string]bool{
	"anonVMANameLayout": true, // since 5.17
	"btfModuleLayout":   true, // since 5.11
	"backingFileLayout": true, // since 6.7
	"fpstateLayout":     true, // since 5.16
	"unixSockLayout":    true, // AF_UNIX may be a module
	// A kernel may be built without modules.
	"kernelSymbolLayout": true, "moduleLayout": true, "moduleTextLayout": true, "moduleUseLayout": true, "notesAttrsLayout": true,
	"unixAddressLayout": true,
	"packetSockLayout":  true, // AF_PACKET may be one
}

var btfDir = flag.String("btf", "", "folder of raw BTF files of further kernels to check layouts against")

// TestLayouts resolves every layout against the types of real kernels.
func TestLayouts(t *testing.T) {
	files := []string{"/sys/kernel/btf/vmlinux"}
	if *btfDir != "" {
		more, err := filepath.Glob(filepath.Join(*btfDir, "*"))
		if err != nil || len(more) == 0 {
			t.Fatalf("no files in %s: %v", *btfDir, err)
		}
		files = append(files, more...)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			blob, err := os.ReadFile(file)
			if errors.Is(err, os.ErrNotExist) {
				t.Skipf("this machine's kernel has no type information: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			src, err := types.ParseBTF(blob)
			if err != nil {
				t.Fatal(err)
			}
			for name, l := range allLayouts {
				if err := l.Check(src); err != nil {
					if optionalLayouts[name] && errors.Is(err, types.ErrNoType) {
						continue
					}
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// TestLayoutsListed fails when a layout was added without being listed above.
func TestLayoutsListed(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 || len(spec.Names) != 1 || !isLayoutOf(spec.Values[0]) {
				return true
			}
			found++
			if allLayouts[spec.Names[0].Name] == nil {
				t.Errorf("%s: %s is not in allLayouts", name, spec.Names[0].Name)
			}
			return true
		})
	}
	if found < 50 {
		t.Errorf("found only %d layouts: the search is broken", found)
	}
}

func isLayoutOf(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	ix, ok := call.Fun.(*ast.IndexExpr)
	if !ok {
		return false
	}
	id, ok := ix.X.(*ast.Ident)
	return ok && id.Name == "LayoutOf"
}
