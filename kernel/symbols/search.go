package symbols

import (
	"encoding/binary"
)

// Search looks for kallsyms tables by their content in region, whose first byte is
// at address base, and calls try with each place where dictionary and names fit
// together, until try returns true. It does not know the addresses' encoding:
// kernels up to 6.3 keep the addresses before the names, newer ones behind the
// dictionary, so try may be called twice for one table. The result says whether
// try did accept one.
//
// The landmark is the dictionary: digits never grow into longer tokens, so "0" to
// "9" stand in it in a row, each with its zero byte. The time Search takes is
// proportional to the size of region, whatever is in it.
func Search(region []byte, base uint64, try func(Addrs) bool) bool {
	budget := len(region)/4 + 1<<22
	for at := 0; ; {
		hit := digitRun(region, at)
		if hit < 0 || budget <= 0 {
			return false
		}
		at = hit + 20
		table, index, ok := tokenTable(region, hit, &budget)
		if !ok {
			continue
		}
		names, num, n := namesBefore(region, table, &budget)
		if n == 0 {
			continue
		}
		a := Addrs{
			NumSyms: base + uint64(num), Names: base + uint64(names),
			TokenTable: base + uint64(table), TokenIndex: base + uint64(index),
		}
		if tryOffsets(a, region, base, num, n, try) {
			return true
		}
	}
}

// tryOffsets calls try for both places of the array of addresses.
func tryOffsets(a Addrs, region []byte, base uint64, num, n int, try func(Addrs) bool) bool {
	after := a
	after.Offsets = a.TokenIndex + 2*tokenCount
	after.RelativeBase = (after.Offsets + 4*uint64(n) + 7) &^ 7
	if after.RelativeBase-base+8 <= uint64(len(region)) && try(after) {
		return true
	}
	if before := num - 8 - (4*n+7)&^7; before >= 0 {
		a.RelativeBase = base + uint64(num-8)
		a.Offsets = base + uint64(before)
		if try(a) {
			return true
		}
	}
	if before := num - 8*n; before >= 0 {
		a.RelativeBase, a.Offsets = 0, 0
		a.Addresses = base + uint64(before)
		return try(a)
	}
	return false
}

// digitRun returns the offset of the next "0\0" "1\0" … "9\0" at or behind from, or
// -1. Any eight aligned bytes within it are digits and zeros in turn, which is what
// is looked for: one test for eight bytes.
func digitRun(b []byte, from int) int {
	const (
		even = 0x00f0_00f0_00f0_00f0
		odd  = 0xf000_f000_f000_f000
	)
	for i := from &^ 7; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		if w&(0xff00_ff00_ff00_ff00|even) != 0x0030_0030_0030_0030 &&
			w&(0x00ff_00ff_00ff_00ff|odd) != 0x3000_3000_3000_3000 {
			continue
		}
		// The digit in w says how far back the run begins.
		d, at := int(b[i]), i
		if d == 0 {
			d, at = int(b[i+1]), i+1
		}
		start := at - 2*(d-'0')
		if d < '0' || d > '9' || start < from || start+20 > len(b) {
			continue
		}
		ok := true
		for j := range 10 {
			if b[start+2*j] != byte('0'+j) || b[start+2*j+1] != 0 {
				ok = false
				break
			}
		}
		if ok {
			return start
		}
	}
	return -1
}

// tokenTable checks that the digits at hit belong to a dictionary: 256 strings and
// behind them the table of their offsets. It returns the offsets of both.
func tokenTable(b []byte, hit int, budget *int) (table, index int, ok bool) {
	p := hit
	for range tokenCount - '0' {
		end := p
		for end < len(b) && b[end] != 0 && end-p <= maxName {
			end++
		}
		if end >= len(b) || b[end] != 0 {
			return 0, 0, false
		}
		p = end + 1
	}
	*budget -= 4 * (p - hit)
	for pad := 0; pad < 8; pad++ {
		index = p + pad
		if index+2*tokenCount > len(b) || pad > 0 && b[index-1] != 0 {
			return 0, 0, false
		}
		table = hit - int(binary.LittleEndian.Uint16(b[index+2*'0':]))
		if table < 0 || index-table > maxTokenTab+8 {
			continue
		}
		if dictionary(b[table:index], b[index:], nil) {
			return table, index, true
		}
	}
	return 0, 0, false
}

// namesBefore looks backwards from the dictionary for the number of symbols and the
// names behind it: only there does a walk over that many names end at markers that
// agree with it. The number is padded to eight bytes with zeros, which few other
// words are, and only in 7.x not.
func namesBefore(b []byte, table int, budget *int) (names, num, n int) {
	aligns := [2]int{8, 4}
	if table%8 != 0 {
		aligns = [2]int{4, 8}
	}
	var k kallsyms
	for _, align := range aligns {
		for num = (table - 8) &^ (align - 1); num >= 0 && table-num < maxNames && *budget > 0; num -= align {
			*budget--
			if n, ok := namesAt(&k, b[num:table], num, align, budget); ok {
				return num + align, num, n
			}
		}
	}
	return 0, 0, 0
}

// namesAt says whether b, which is at offset base, begins with the number of symbols,
// stored in size bytes, and the names follow it. k is scratch.
func namesAt(k *kallsyms, b []byte, base, size int, budget *int) (n int, ok bool) {
	const least = 1024 // a kernel has more symbols
	w := uint64(binary.LittleEndian.Uint32(b))
	if size == 8 {
		w = binary.LittleEndian.Uint64(b)
	}
	if w < least || w > maxSymbols || 2*int(w) > len(b) {
		return 0, false
	}
	b = b[size:]
	k.n = int(w)
	for _, uleb := range []bool{true, false} {
		k.names, k.uleb = b, uleb
		markers, ok := k.scan()
		*budget -= 64 + markEvery*len(k.marks)
		if ok {
			if _, ok := matchMarkers(b, len(k.names), uint64(base+size), markers); ok {
				return k.n, true
			}
		}
	}
	return 0, false
}
