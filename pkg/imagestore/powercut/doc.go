// Package powercut tests what a power cut leaves of an image store. Its tests keep the store on ext4, btrfs and xfs, on a block device that
// records every write and every flush (a loop device over a file that the test itself serves by FUSE), and then
// replay the record up to each flush, with some of the writes behind it, and open what that gives.
package powercut
