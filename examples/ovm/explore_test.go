package main

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/ovmigrate/ovmigrate/internal/testvm"
)

// TestExplore compares info, sym, type and obj with what the guest knows of itself.
func TestExplore(t *testing.T) {
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			vm := sharedGuest(t, suite)
			e := explorer{vm, "qmp:" + vm.QMPSocket()}
			t.Run("info", e.info)
			t.Run("sym", e.symbols)
			t.Run("obj", e.objects)
			t.Run("type", e.types)
		})
	}
}

type explorer struct {
	vm    *testvm.VM
	guest string
}

// ask runs a program in the guest.
func (e explorer) ask(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := e.vm.Exec(t.Context(), argv...)
	require.NoError(t, err)
	return strings.TrimSpace(string(out))
}

func (e explorer) text(t *testing.T, args ...string) string {
	t.Helper()
	return strings.TrimSpace(string(ovm(t, append([]string{"-g", e.guest}, args...)...)))
}

// value returns the JSON value of an expression.
func (e explorer) value(t *testing.T, expr string) any {
	t.Helper()
	o := ovmJSON[map[string]any](t, "-g", e.guest, "obj", expr)
	require.Equal(t, expr, o["expr"])
	return o["value"]
}

func (e explorer) info(t *testing.T) {
	i := ovmJSON[info](t, "-g", e.guest, "info")
	require.Equal(t, e.ask(t, "uname", "-r"), i.Release)
	require.Equal(t, e.ask(t, "cat", "/proc/version"), i.Banner)
	require.Equal(t, 4, i.Levels)
	require.Equal(t, []int{0}, i.OnlineCPUs)
	require.Len(t, i.VCPUs, 1)
	require.Equal(t, []infoRange{{0, 1 << 30}}, i.Memory)
	require.NotEmpty(t, i.Found)
	require.Contains(t, e.text(t, "info"), i.Release)
}

func (e explorer) symbols(t *testing.T) {
	for _, name := range []string{"init_task", "schedule", "_text", "tcp_hashinfo"} {
		lines := e.ask(t, "grep", "-E", " "+name+"$", "/proc/kallsyms")
		require.Equal(t, lines, e.text(t, "sym", name))
	}
	task := ovmJSON[[]symbol](t, "-g", e.guest, "sym", "init_task")[0]
	in := ovmJSON[[]symbol](t, "-g", e.guest, "sym", (task.Address + 24).String())
	require.Equal(t, []symbol{{Address: task.Address, Type: task.Type, Name: "init_task", Offset: 24}}, in)
}

func (e explorer) objects(t *testing.T) {
	stat := strings.Fields(e.ask(t, "cat", "/proc/1/stat")) // the name there has no space
	field := func(n int) float64 {
		v, err := strconv.ParseFloat(stat[n-1], 64)
		require.NoError(t, err)
		return v
	}
	require.Equal(t, "swapper/0", e.value(t, "init_task.comm"))
	require.Equal(t, "init", e.value(t, "task(1).comm"))
	require.Equal(t, field(26), e.value(t, "task(1).mm.start_code"))
	require.Equal(t, field(28), e.value(t, " task( 1 ) -> mm->start_stack "))
	require.Equal(t, e.ask(t, "hostname"), e.value(t, "(*init_task.nsproxy).uts_ns.name.nodename"))

	// The list of tasks begins with process 1, from wherever it is looked at.
	head, ok := e.value(t, "init_task.tasks").(map[string]any)
	require.True(t, ok)
	require.Equal(t, e.value(t, "&task(1).tasks"), head["next"])
	require.Equal(t, e.value(t, "&init_task.tasks"), e.value(t, "((struct list_head *)task(1).tasks.prev)"))
	require.Equal(t, e.value(t, "&init_task"), e.value(t, "(struct list_head *)&init_task"))

	// Per-CPU variables, arrays, and what people see.
	require.Equal(t, 0.0, e.value(t, "percpu(runqueues, 0).cpu"))
	limits, ok := e.value(t, "init_task.signal.rlim").([]any)
	require.True(t, ok)
	require.Len(t, limits, 16)
	require.Equal(t, limits[3], e.value(t, "init_task.signal.rlim[3]"))
	require.Equal(t, `(char[16]) task(1).comm = "init"`, e.text(t, "obj", "task(1).comm"))
	require.Regexp(t, `(?s)^\(struct list_head\) init_task.tasks = \{\n    next = 0xffff.*\n\}$`, e.text(t, "obj", "init_task.tasks"))
	require.Regexp(t, `= 0xffff[0-9a-f]{12} <init_task>$`, e.text(t, "obj", "&init_task"))
	require.NotContains(t, e.text(t, "obj", "--depth", "0", "init_task"), "\n        ")

	for expr, want := range map[string]string{
		"runqueues":               "every CPU has its own runqueues: write percpu(runqueues, 0)",
		"jiffies_64":              "the type of jiffies_64 is not known",
		"task(1).":                "the name of a member is missing",
		"task(1":                  ") is missing",
		"task(x)":                 `"x" is no process number`,
		"init_task.comm[x]":       "is no index",
		"init_task + 1":           `unexpected "+ 1"`,
		"(struct list_head)":      "a cast is to a pointer",
		"0x1000":                  "what is at 0x1000?",
		strings.Repeat("(", 1000): "nested too deep",
	} {
		requireUsage(t, want, "-g", e.guest, "obj", expr)
	}
}

func (e explorer) types(t *testing.T) {
	text := e.text(t, "type", "list_head")
	require.Equal(t, strings.Join([]string{
		"struct list_head {",
		"    struct list_head *next;                              /* 0 8 */",
		"    struct list_head *prev;                              /* 8 8 */",
		"}; /* 16 bytes */",
	}, "\n"), text)
	require.Equal(t, text, e.text(t, "type", "struct  list_head"))
	require.Contains(t, e.text(t, "type", "pid_type"), "PIDTYPE_PGID = 2,")
	require.Regexp(t, `^typedef struct \{\n    int counter; +/\* 0 4 \*/\n\} atomic_t; /\* 4 bytes \*/$`, e.text(t, "type", "atomic_t"))
	require.Equal(t, "typedef long long unsigned int __u64;", e.text(t, "type", "__u64"))

	// The members of task_struct follow each other without overlap, bit-fields and
	// what lies in unions aside.
	end := 0
	for _, m := range regexp.MustCompile(`(?m)^    [^ }].*; +/\* (\d+) (\d+) \*/$`).FindAllStringSubmatch(e.text(t, "type", "task_struct"), -1) {
		off, _ := strconv.Atoi(m[1])
		size, _ := strconv.Atoi(m[2])
		require.GreaterOrEqual(t, off, end, m[0])
		end = off + size
	}
	require.Greater(t, end, 2000)
	require.Contains(t, e.text(t, "type", "--depth", "1", "task_struct"), "    struct sched_entity {\n        struct load_weight load;")
}
