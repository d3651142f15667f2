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
	"addressSpaceLayout":     addressSpaceLayout,
	"alarmLayout":            alarmLayout,
	"anonVMANameLayout":      anonVMANameLayout,
	"backingFileLayout":      backingFileLayout,
	"bpfProgLayout":          bpfProgLayout,
	"cgroupLayout":           cgroupLayout,
	"cgroupRootLayout":       cgroupRootLayout,
	"cgroupSubsysLayout":     cgroupSubsysLayout,
	"cgrpLinkLayout":         cgrpLinkLayout,
	"credLayout":             credLayout,
	"cssLayout":              cssLayout,
	"cssSetLayout":           cssSetLayout,
	"dentryLayout":           dentryLayout,
	"dentryOpsLayout":        dentryOpsLayout,
	"epitemLayout":           epitemLayout,
	"eventfdLayout":          eventfdLayout,
	"eventpollLayout":        eventpollLayout,
	"fdtableLayout":          fdtableLayout,
	"fileLockContextLayout":  fileLockContextLayout,
	"fileLockLayout":         fileLockLayout,
	"fileLayout":             fileLayout,
	"fileOpsLayout":          fileOpsLayout,
	"filesLayout":            filesLayout,
	"fownLayout":             fownLayout,
	"fpstateLayout":          fpstateLayout,
	"fsStructLayout":         fsStructLayout,
	"fsTypeLayout":           fsTypeLayout,
	"groupInfoLayout":        groupInfoLayout,
	"hrtimerBaseLayout":      hrtimerBaseLayout,
	"hrtimerClockBaseLayout": hrtimerClockBaseLayout,
	"hrtimerLayout":          hrtimerLayout,
	"idExtentLayout":         idExtentLayout,
	"idrLayout":              idrLayout,
	"inodeLayout":            inodeLayout,
	"ioContextLayout":        ioContextLayout,
	"itimersLayout":          itimersLayout,
	"kItimerLayout":          kItimerLayout,
	"kernfsNodeLayout":       kernfsNodeLayout,
	"mapleNodeLayout":        mapleNodeLayout,
	"mapleTreeLayout":        mapleTreeLayout,
	"memCgroupLayout":        memCgroupLayout,
	"mmLayout":               mmLayout,
	"mntNamespaceLayout":     mntNamespaceLayout,
	"mountLayout":            mountLayout,
	"nTTYLayout":             nTTYLayout,
	"nsCommonLayout":         nsCommonLayout,
	"nsproxyLayout":          nsproxyLayout,
	"pageCounterLayout":      pageCounterLayout,
	"pageLayout":             pageLayout,
	"pageStateLayout":        pageStateLayout,
	"pidLayout":              pidLayout,
	"pidsCgroupLayout":       pidsCgroupLayout,
	"pipeBufferLayout":       pipeBufferLayout,
	"pipeLayout":             pipeLayout,
	"procNSOpsLayout":        procNSOpsLayout,
	"processCPULayout":       processCPULayout,
	"ptRegsLayout":           ptRegsLayout,
	"rbNodeLayout":           rbNodeLayout,
	"seccompFilterLayout":    seccompFilterLayout,
	"shmemInodeLayout":       shmemInodeLayout,
	"sigActionLayout":        sigActionLayout,
	"sigMasksLayout":         sigMasksLayout,
	"sighandLayout":          sighandLayout,
	"signalAttrLayout":       signalAttrLayout,
	"signalPIDsLayout":       signalPIDsLayout,
	"signalfdLayout":         signalfdLayout,
	"sigqueueLayout":         sigqueueLayout,
	"sigqueueTimerLayout":    sigqueueTimerLayout,
	"sockFprogLayout":        sockFprogLayout,
	"sockLayout":             sockLayout,
	"socketLayout":           socketLayout,
	"superBlockLayout":       superBlockLayout,
	"taskAttrLayout":         taskAttrLayout,
	"taskCredLayout":         taskCredLayout,
	"taskGroupLayout":        taskGroupLayout,
	"taskLayout":             taskLayout,
	"taskSeccompLayout":      taskSeccompLayout,
	"termiosLayout":          termiosLayout,
	"threadCPULayout":        threadCPULayout,
	"threadStateLayout":      threadStateLayout,
	"timeNSLayout":           timeNSLayout,
	"timekeeperLayout":       timekeeperLayout,
	"timerfdLayout":          timerfdLayout,
	"tkReadBaseLayout":       tkReadBaseLayout,
	"ttyDriverLayout":        ttyDriverLayout,
	"ttyLayout":              ttyLayout,
	"ttyLdiscLayout":         ttyLdiscLayout,
	"ttyLdiscOpsLayout":      ttyLdiscOpsLayout,
	"ttyPrivateLayout":       ttyPrivateLayout,
	"unixAddressLayout":      unixAddressLayout,
	"unixSockLayout":         unixSockLayout,
	"upidLayout":             upidLayout,
	"userNSLayout":           userNSLayout,
	"utsLayout":              utsLayout,
	"vdsoImageLayout":        vdsoImageLayout,
	"vfsmountLayout":         vfsmountLayout,
	"vmOpsLayout":            vmOpsLayout,
	"vmSpecialMappingLayout": vmSpecialMappingLayout,
	"vmaLayout":              vmaLayout,
	"winsizeLayout":          winsizeLayout,
	"xaNodeLayout":           xaNodeLayout,
	"xarrayLayout":           xarrayLayout,

	// Scheduling, stacks, control groups, namespaces and mounts.
	"cfsRQLayout": cfsRQLayout,
	"cgroupRootFieldsLayout": cgroupRootFieldsLayout,
	"cgroupTreeLayout": cgroupTreeLayout,
	"cgrpLinkCsetLayout": cgrpLinkCsetLayout,
	"cssSetTasksLayout": cssSetTasksLayout,
	"dlRQLayout": dlRQLayout,
	"inactiveTaskFrameLayout": inactiveTaskFrameLayout,
	"kernelCPUStatLayout": kernelCPUStatLayout,
	"kernfsSuperInfoLayout": kernfsSuperInfoLayout,
	"modKallsymsLayout": modKallsymsLayout,
	"moduleLayout": moduleLayout,
	"orcEntryLayout": orcEntryLayout,
	"procFSInfoLayout": procFSInfoLayout,
	"ptsFSInfoLayout": ptsFSInfoLayout,
	"rtRQLayout": rtRQLayout,
	"runQueueLayout": runQueueLayout,
	"schedDLEntityLayout": schedDLEntityLayout,
	"schedEntityLayout": schedEntityLayout,
	"schedRTEntityLayout": schedRTEntityLayout,
	"shmemSBInfoLayout": shmemSBInfoLayout,
	"taskGroupQueuesLayout": taskGroupQueuesLayout,
	"taskSchedLayout": taskSchedLayout,
	"threadSPLayout": threadSPLayout,
	"tickSchedLayout": tickSchedLayout,
}

// optionalLayouts are of structures that some kernels do without.
var optionalLayouts = map[string]bool{
	"anonVMANameLayout": true, // since 5.17
	"backingFileLayout": true, // since 6.7
	"fpstateLayout":     true, // since 5.16
	"unixSockLayout":    true, // AF_UNIX may be a module
	"unixAddressLayout": true,
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
