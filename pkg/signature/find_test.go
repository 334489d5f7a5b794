package signature_test

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/rawblock-csi/rawblock-csi/pkg/signature"
)

// Sizes of disks: smaller than the head, than head and tail, no multiple of
// anything, and as large as they come.
var sizes = []int64{1, 511, 4096, 1*mib + 7, 16 * mib, 16*mib + 512, 24*mib - 1, 32 * mib, 32*mib + 513, 100*mib - 512, 1 * gib, 1*tib + 4096, 20 * tib}

func TestZerosAreFree(t *testing.T) {
	for _, size := range sizes {
		if found := find(t, image{size: size}, size); len(found) != 0 {
			t.Errorf("%d bytes of zeros: %v", size, found)
		}
	}
}

// One byte in the head or the tail is enough, wherever it is.
func TestOneByteIsFound(t *testing.T) {
	for _, size := range sizes {
		for _, offset := range []int64{
			0, 1, 511, 4095, 4096, 1*mib - 1, 1 * mib, 5*mib + 3, 16*mib - 1,
			size - 16*mib, size - 16*mib + 1, size - 4097, size - 513, size - 2, size - 1,
		} {
			if offset < 0 || offset >= size {
				continue
			}
			want := []signature.Finding{{Kind: signature.Unknown, Offset: offset}}
			got := find(t, image{size, map[int64]string{offset: "\x01"}}, size)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("a byte at %d of %d (-want +got):\n%s", offset, size, diff)
			}
		}
	}
}

// Of what lies between, and has no mark, only samples are read: a hundredth of a disk
// is found wherever it is, a block need not be. See the package comment.
func TestDataBetween(t *testing.T) {
	const size = 20 * gib
	text := strings.Repeat("x", size/100)
	for at := int64(16 * mib); at < size-16*mib-size/100; at += size / 37 {
		disk := image{size, map[int64]string{at: text}}
		found := find(t, disk, size)
		if len(found) != 1 || found[0].Kind != signature.Unknown || found[0].Offset < at || found[0].Offset > at+size/100 {
			t.Errorf("data at %d: found %v", at, found)
		}
	}
	disk := image{size, map[int64]string{16*mib + 4096: "\x01", size - 16*mib - 1: "\x01"}}
	if found := find(t, disk, size); len(found) != 0 {
		t.Errorf("blocks that are no samples: found %v", found)
	}
}

// Each mark of the table alone, with whatever else there is zero, is found under
// its name. These are bytes by the sources that the table names; images by the
// tools themselves are in tools_test.go.
func TestEachMarkIsFound(t *testing.T) {
	for _, size := range []int64{64*mib + 512, 2*tib + 512*3} {
		for _, marks := range apart(signature.MarksOn(size)) {
			disk, want := image{size, map[int64]string{}}, []signature.Finding{}
			for _, mark := range marks {
				disk.data[mark.Offset] = mark.Magic
				want = append(want, signature.Finding{Kind: mark.Kind, Offset: mark.Offset})
			}
			got := find(t, disk, size)
			for _, finding := range want {
				if !slices.Contains(got, finding) {
					t.Errorf("%d bytes: %v was not found", size, finding)
				}
			}
		}
	}
}

// apart sorts marks onto disks on which none overlaps another.
func apart(marks []signature.Mark) [][]signature.Mark {
	var disks [][]signature.Mark
next:
	for _, mark := range marks {
		for i, others := range disks {
			last := others[len(others)-1]
			if last.Offset+int64(len(last.Magic)) <= mark.Offset {
				disks[i] = append(others, mark)
				continue next
			}
		}
		disks = append(disks, []signature.Mark{mark})
	}
	return disks
}

// All reads are whole blocks, so that a mark must not cross the border of two; and
// no byte is read twice.
func TestReadsAreWholeBlocksInOrder(t *testing.T) {
	for _, size := range sizes {
		disk := &recorder{image: image{size: size}}
		find(t, disk, size)
		end := int64(0)
		for _, read := range disk.reads {
			if read.start < end || read.start%signature.Block != 0 || read.end%signature.Block != 0 && read.end != size {
				t.Errorf("%d bytes: read from %d to %d after %d", size, read.start, read.end, end)
			}
			end = read.end
		}
		if len(disk.reads) > 1150 || end != size {
			t.Errorf("%d bytes: %d reads up to %d", size, len(disk.reads), end)
		}
	}
}

type recorder struct {
	image
	reads []struct{ start, end int64 }
}

// ReadAt records what is read.
func (r *recorder) ReadAt(data []byte, offset int64) (int, error) {
	r.reads = append(r.reads, struct{ start, end int64 }{offset, offset + int64(len(data))})
	return r.image.ReadAt(data, offset)
}

// A disk that cannot be read is not free, whichever read fails and however.
func TestReadErrors(t *testing.T) {
	broken := errors.New("medium error")
	const size = 1*gib + 512
	count := &recorder{image: image{size: size}}
	find(t, count, size)
	for i := range count.reads {
		disk := &failing{image: image{size: size}, after: i, err: broken}
		if found, err := signature.Find(disk, size); !errors.Is(err, broken) || found != nil {
			t.Errorf("read %d fails: %v, %v", i, found, err)
		}
		short := &failing{image: image{size: size}, after: i, err: io.EOF}
		if found, err := signature.Find(short, size); !errors.Is(err, io.ErrUnexpectedEOF) || found != nil {
			t.Errorf("read %d ends early: %v, %v", i, found, err)
		}
	}
	if found, err := signature.Find(image{size: mib}, 2*mib); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a disk that ends before its size: %v, %v", found, err)
	}
	for _, size := range []int64{0, -1} {
		if found, err := signature.Find(image{}, size); err == nil {
			t.Errorf("a disk of %d bytes: %v without an error", size, found)
		}
	}
}

// failing is a disk of which one read fails half-way.
type failing struct {
	image
	after int
	err   error
}

// ReadAt fails when it is its turn.
func (f *failing) ReadAt(data []byte, offset int64) (int, error) {
	f.after--
	if f.after >= 0 {
		return f.image.ReadAt(data, offset)
	}
	n, _ := f.image.ReadAt(data[:len(data)/2], offset)
	return n, f.err
}

// Some tools ask for the last byte and get EOF with it.
func TestEOFWithTheLastByte(t *testing.T) {
	if found := find(t, eager{image{size: mib}}, mib); len(found) != 0 {
		t.Errorf("found %v", found)
	}
}

type eager struct{ image }

// ReadAt says EOF as soon as it may.
func (e eager) ReadAt(data []byte, offset int64) (int, error) {
	n, err := e.image.ReadAt(data, offset)
	if offset+int64(n) == e.size {
		err = io.EOF
	}
	return n, err
}

func TestMarksAreWithinABlock(t *testing.T) {
	// Ends by all the alignments that a disk can have.
	for _, size := range []int64{64 * mib, 64*mib + 512, 64*mib + 7*512, 2*tib + 3*4096} {
		for _, mark := range signature.MarksOn(size) {
			if last := mark.Offset + int64(len(mark.Magic)) - 1; mark.Offset/signature.Block != last/signature.Block || last >= size {
				t.Errorf("%s at %d of %d, %d bytes: not within a block", mark.Kind, mark.Offset, size, len(mark.Magic))
			}
			if mark.Kind == "" || mark.Magic == "" {
				t.Errorf("an empty mark at %d", mark.Offset)
			}
		}
	}
}

func TestFindingSaysWhatAndWhere(t *testing.T) {
	if got := (signature.Finding{Kind: "swap space", Offset: 4086}).String(); got != "swap space at 4086" {
		t.Errorf("got %q", got)
	}
}

func FuzzFind(f *testing.F) {
	f.Add([]byte("\x53\xef"), int64(128*mib+0x38), int64(1*gib))
	f.Add([]byte("EFI PART"), int64(512), int64(2*mib))
	f.Add([]byte{1}, int64(mib-1), int64(mib))
	f.Add([]byte{0, 0, 1}, int64(40*mib-3), int64(40*mib+1))
	f.Add([]byte("_BHRfS_M"), int64(64*mib+0x40), int64(4*tib))
	f.Add([]byte{}, int64(0), int64(0))
	f.Fuzz(func(t *testing.T, data []byte, offset, size int64) {
		if size <= 0 || offset < 0 || offset >= size || size > 1<<62 {
			return
		}
		data = data[:min(int64(len(data)), size-offset)]
		found := find(t, image{size, map[int64]string{offset: string(data)}}, size)
		first := slices.IndexFunc(data, func(b byte) bool { return b != 0 })
		if first < 0 {
			if len(found) != 0 {
				t.Fatalf("zeros: %v", found)
			}
			return
		}
		for i, b := range data {
			at := offset + int64(i)
			if b != 0 && (at < 16*mib || at >= size-16*mib) && len(found) == 0 {
				t.Fatalf("the byte at %d of %d was not found", at, size)
			}
		}
		for _, finding := range found {
			if finding.Offset >= size || finding.Offset+64 < offset+int64(first) || finding.Offset >= offset+int64(len(data)) {
				t.Fatalf("%v is not where the data is, %d to %d", finding, offset, offset+int64(len(data)))
			}
		}
	})
}
