// Package health finds out what is wrong with block devices, and with all that they
// are made of, down to the disks.
//
// Rules. Nobody waits for a disk that does not answer: what is found is read from
// sysfs, which the kernel answers by itself; the one question that goes to hardware
// (the SMART log of an NVMe controller) and all else that may take its time is asked
// beside the caller, once at a time (Asker). Nothing is read from a medium, and nothing
// is written.
//
// A counter has no time, and no file remembers one: what a counter was when this
// process first looked is what it is compared with, and "since" is when this process
// first saw something. A restart forgets both.
//
// What is known of a pool or of a container is not found here: see driver.
package health
