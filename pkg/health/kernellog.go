package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"k8s.io/klog/v2"
)

// kernelLog is the kernel's log (Documentation/ABI/testing/dev-kmsg). No count in sysfs
// is one of I/O errors: that of SCSI (ioerr_cnt) grows with each command that is
// repeated or that a disk does not know, so it grows whenever another disk of the host
// is plugged in, and the other drivers have none.
const kernelLog = "/dev/kmsg"

// maxRecord is more than a record of the log has (CONSOLE_EXT_LOG_MAX in the kernel's
// kernel/printk/internal.h).
const maxRecord = 16 << 10

// Follow takes in what the kernel logs of I/O errors from now on, until ctx ends. Where
// the log cannot be read, it says so in the plugin's own log and returns: I/O errors
// are not told of then.
func (m *Monitor) Follow(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	log, err := os.OpenFile(kernelLog, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err == nil {
		_, err = log.Seek(0, io.SeekEnd)
	}
	if err != nil {
		logger.Error(err, "Cannot read the kernel's log, so I/O errors are not reported as health; give the plugin CAP_SYSLOG and the host's /dev/kmsg")
		return nil
	}
	defer context.AfterFunc(ctx, func() {
		log.Close() //nolint:errcheck,gosec // It is read only; this ends the read.
	})()
	buffer := make([]byte, maxRecord)
	for {
		n, err := log.Read(buffer)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, syscall.EPIPE):
			continue // What was not read in time has been overwritten.
		case err != nil:
			logger.Error(err, "Cannot read the kernel's log any more, so further I/O errors are not reported as health")
			return nil
		}
		if failed, ok := parseRecord(string(buffer[:n])); ok {
			m.noteError(failed)
		}
	}
}

// ioError is an I/O error that the kernel has logged.
type ioError struct {
	// disk is the kernel's name of the disk.
	disk string
	// text says which request failed, and how.
	text string
}

// ioErrorForm is what the kernel logs of a request that failed for good, which it does
// for some requests per second (blk_print_req_error in block/blk-mq.c). Before
// Linux 5.16 the name of the function that logs it came first.
var ioErrorForm = regexp.MustCompile(`^(?:[a-z_]+: )?([A-Za-z/ ]+) error, dev ([^ ,]+), (sector [0-9]+) op 0x[0-9a-f]+:\(([A-Z_]+)\)`)

// What is no I/O error of a disk: a request that it does not know, or that another host
// has forbidden (blk_errors in block/blk-core.c).
var noFaults = []string{"operation not supported", "reservation conflict", "kernel resource", "device resource", "nonblocking retry"}

// data are the requests that concern data; of others, such as discards, a disk may well
// refuse some.
var data = []string{"READ", "WRITE", "FLUSH", "ZONE_APPEND"}

// parseRecord reads a record of the log: "PRIORITY,SEQUENCE,TIME,FLAGS;TEXT" and more
// lines. What is not of the kernel itself does not count: anybody can write there who
// may open it for writing.
func parseRecord(record string) (ioError, bool) {
	prefix, text, found := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(prefix, ",")
	number, err := strconv.ParseUint(priority, 10, 32)
	if !found || err != nil || number>>3 != 0 { // syslog(2): the facility is above three bits of level.
		return ioError{}, false
	}
	text, _, _ = strings.Cut(text, "\n")
	match := ioErrorForm.FindStringSubmatch(text)
	if match == nil || slices.Contains(noFaults, match[1]) || !slices.Contains(data, match[4]) {
		return ioError{}, false
	}
	return ioError{match[2], fmt.Sprintf("%s error, %s at %s", match[1], match[4], match[3])}, true
}

// noteError takes in an I/O error of the disk that has the name now.
func (m *Monitor) noteError(failed ioError) {
	number, seq, err := m.sysfs.DiskNamed(failed.disk)
	if err != nil {
		return // It has gone, and that is told of instead.
	}
	m.known.Lock()
	defer m.known.Unlock()
	errs := &m.history(number, seq).errors
	now := m.now()
	if errs.count == 0 || now.Sub(errs.latest) > errorTime {
		*errs = ioErrors{began: now}
	}
	errs.count++
	errs.latest, errs.text = now, failed.text
}
