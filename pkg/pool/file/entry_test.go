package file

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func FuzzParseRecord(f *testing.F) {
	f.Add([]byte(`{"blockSize":512,"created":"2026-11-24T05:00:00Z"}`))
	f.Add([]byte(`{"blockSize":4096,"thin":true,"snapshot":"snap-1","created":"2026-11-24T05:00:00.123456789Z"}`))
	f.Add([]byte(`{"blockSize":512,"volume":"pvc-1"} {}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, content []byte) {
		r, err := parseRecord(content)
		if err != nil {
			return
		}
		if !validBlockSize(r.BlockSize) {
			t.Errorf("%q: a block size of %d", content, r.BlockSize)
		}
		written, err := json.Marshal(r)
		if err != nil {
			return // A time that JSON has no form for.
		}
		if again, err := parseRecord(written); err != nil || !cmp.Equal(again, r) {
			t.Errorf("%q is read as %+v, and that as %+v, %v", content, r, again, err)
		}
	})
}
