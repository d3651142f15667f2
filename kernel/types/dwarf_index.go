package types

import (
	"debug/dwarf"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
)

// indexDWARF returns where the named definitions at the top of all units are: types,
// functions, variables. Of equal ones it is the first.
func indexDWARF(data *dwarf.Data) (map[dieKey]uint32, error) {
	units, err := unitOffsets(data)
	if err != nil {
		return nil, err
	}
	var (
		next   atomic.Int64
		wg     sync.WaitGroup
		mu     sync.Mutex
		all    = make(map[dieKey]uint32)
		errOne error
	)
	for range min(runtime.GOMAXPROCS(0), 16, len(units)) {
		wg.Go(func() {
			mine := make(map[dieKey]uint32)
			var err error
			for err == nil {
				// Units are small; some at a time keep the processors apart.
				const batch = 8
				i := int(next.Add(batch)) - batch
				if i >= len(units) {
					break
				}
				for _, u := range units[i:min(i+batch, len(units))] {
					if err = indexUnit(data, u, mine); err != nil {
						break
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errOne = err
			}
			for k, off := range mine {
				if have, ok := all[k]; !ok || off < have {
					all[k] = off
				}
			}
		})
	}
	wg.Wait()
	if errOne != nil {
		return nil, errOne
	}
	if len(all) > maxTypes {
		return nil, fmt.Errorf("%w: %d names", ErrCorrupt, len(all))
	}
	return all, nil
}

// unitOffsets returns where the first entries of all units are.
func unitOffsets(data *dwarf.Data) (units []dwarf.Offset, err error) {
	r := data.Reader()
	for {
		e, err := r.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: DWARF: %w", ErrCorrupt, err)
		}
		if e == nil {
			return units, nil
		}
		if e.Offset > 1<<32-1 || len(units) >= maxTypes {
			return nil, fmt.Errorf("%w: DWARF of more than 4 GiB", ErrCorrupt)
		}
		units = append(units, e.Offset)
		r.SkipChildren()
	}
}

// indexUnit adds the definitions of one unit to index.
func indexUnit(data *dwarf.Data, unit dwarf.Offset, index map[dieKey]uint32) error {
	r := data.Reader()
	r.Seek(unit)
	top, err := r.Next()
	if err != nil || top == nil || !top.Children {
		return wrapDWARF(err)
	}
	for {
		e, err := r.Next()
		if err != nil {
			return wrapDWARF(err)
		}
		if e == nil || e.Tag == 0 {
			return nil
		}
		if key, ok := keyOf(e); ok && e.Offset <= 1<<32-1 {
			if _, have := index[key]; !have {
				index[key] = uint32(e.Offset)
			}
		}
		r.SkipChildren()
	}
}

func wrapDWARF(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: DWARF: %w", ErrCorrupt, err)
}

// keyOf returns the name of a definition and what tells it from others; ok is false
// for what is not looked up by name.
func keyOf(e *dwarf.Entry) (key dieKey, ok bool) {
	key.tag = e.Tag
	switch e.Tag {
	case dwarf.TagStructType, dwarf.TagUnionType, dwarf.TagEnumerationType, dwarf.TagTypedef, dwarf.TagBaseType:
		key.size, _ = e.Val(dwarf.AttrByteSize).(int64)
		key.line, _ = e.Val(dwarf.AttrDeclLine).(int64)
	case dwarf.TagSubprogram:
	case dwarf.TagVariable:
		if e.Val(dwarf.AttrLocation) == nil {
			return key, false
		}
	default:
		return key, false
	}
	if declared, _ := e.Val(dwarf.AttrDeclaration).(bool); declared {
		return key, false
	}
	key.name = str(e, dwarf.AttrName)
	return key, key.name != ""
}

// Names returns the names of all structs and unions, sorted.
func (d *DWARF) Names() []string {
	names := make(map[string]bool)
	for k := range d.canonical {
		if k.tag == dwarf.TagStructType || k.tag == dwarf.TagUnionType {
			names[k.name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
