package testns

import (
	"fmt"
	"os"
	"strconv"
	"time"
)

// slowVariable says how many times slower than the hardware that tests are written for this machine is: an emulated one
// (hack/vm) sets it.
const slowVariable = "CRI_SERVER_TEST_SLOW"

// slowness is read once; what is no factor ends the run, rather than tests that fail for no reason to be seen.
var slowness = func() float64 {
	f, err := factor(os.Getenv(slowVariable))
	if err != nil {
		fmt.Fprintf(os.Stderr, "testns: %s: %v\n", slowVariable, err)
		os.Exit(2)
	}
	return f
}()

func factor(s string) (float64, error) {
	if s == "" {
		return 1, nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || !(f >= 1 && f <= 100) {
		return 0, fmt.Errorf("%q is no number from 1 to 100", s)
	}
	return f, nil
}

// Patience is how long a test waits here for what elsewhere takes less than d. It is for deadlines that a test fails at when
// nothing happens, not for times that are measured.
func Patience(d time.Duration) time.Duration { return time.Duration(float64(d) * slowness) }
