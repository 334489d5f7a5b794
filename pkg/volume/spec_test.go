package volume_test

import (
	"errors"
	"math"
	"testing"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

func TestChoose(t *testing.T) {
	const unit, minimum, preferred = 4096, 8192, 1 << 30
	for _, test := range []struct {
		asked volume.Range
		want  uint64 // 0: volume.ErrOutOfRange
	}{
		{volume.Range{}, preferred},
		{volume.Range{Required: 1}, minimum},
		{volume.Range{Required: 8192}, 8192},
		{volume.Range{Required: 8193}, 12288},
		{volume.Range{Required: 8192, Limit: 8192}, 8192},
		{volume.Range{Required: 8193, Limit: 12287}, 0},
		{volume.Range{Required: 8193, Limit: 12288}, 12288},
		{volume.Range{Limit: 1 << 20}, 1 << 20},
		{volume.Range{Limit: 1<<20 + 1}, 1 << 20},
		{volume.Range{Limit: 8191}, 0},
		{volume.Range{Limit: 1}, 0},
		{volume.Range{Required: math.MaxUint64}, 0},
		{volume.Range{Required: math.MaxUint64 - 4096}, math.MaxUint64 - 4095},
	} {
		got, err := test.asked.Choose(minimum, preferred, unit)
		if got != test.want || errors.Is(err, volume.ErrOutOfRange) != (test.want == 0) {
			t.Errorf("%+v: got %d, %v; want %d", test.asked, got, err, test.want)
		}
	}
}

func TestContains(t *testing.T) {
	for _, test := range []struct {
		asked volume.Range
		size  uint64
		want  bool
	}{
		{volume.Range{}, 0, true},
		{volume.Range{}, math.MaxUint64, true},
		{volume.Range{Required: 5}, 4, false},
		{volume.Range{Required: 5}, 5, true},
		{volume.Range{Limit: 5}, 5, true},
		{volume.Range{Limit: 5}, 6, false},
		{volume.Range{Required: 5, Limit: 5}, 5, true},
	} {
		if got := test.asked.Contains(test.size); got != test.want {
			t.Errorf("%+v contains %d: %t", test.asked, test.size, got)
		}
	}
}
