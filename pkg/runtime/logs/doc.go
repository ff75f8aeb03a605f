// Package logs writes containers' output in the CRI log format.
//
// A record is "<RFC3339Nano> <stdout|stderr> <P|F> <bytes>\n", as kubelet and crictl read it. A line longer than
// MaxLine is split: its parts are tagged P, the last one F. A last line without a newline is written as P when the
// stream ends, so that a reader which joins the parts gets back exactly the bytes that the container wrote. Bytes are
// kept as they are: carriage returns and invalid UTF-8 included.
//
// A File belongs to one goroutine. It never calls fsync: logs are as durable as the page cache, as with every other
// container runtime. When the file system refuses a write (ENOSPC, EDQUOT, EIO), the records wait in memory, in order,
// until Retry succeeds; the owner stops feeding a File whose Waiting is over its bound.
package logs
