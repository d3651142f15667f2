package main

import (
	"github.com/ovmigrate/ovmigrate/kernel"
)

// rssStat are the counters of resident pages: up to 6.1 atomic, since then a sum
// kept apart by CPU whose rough value is Count. Source: include/linux/mm.h:get_mm_rss.
type rssStat struct {
	File  int64 `k:"rss_stat.count[0].counter|rss_stat[0].count"`
	Anon  int64 `k:"rss_stat.count[1].counter|rss_stat[1].count"`
	Shmem int64 `k:"rss_stat.count[3].counter|rss_stat[3].count"`
}

var rssLayout = kernel.LayoutOf[rssStat]("mm_struct")

// rss returns the number of resident pages of mm, as /proc/PID/stat shows it.
func rss(mm *kernel.MM) (int64, error) {
	s, err := rssLayout.Load(mm.Kernel(), mm.Addr)
	if err != nil {
		return 0, err
	}
	return max(s.File, 0) + max(s.Anon, 0) + max(s.Shmem, 0), nil
}
