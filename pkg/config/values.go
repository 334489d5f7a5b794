package config

import (
	"errors"
	"fmt"
	"math"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// countForm has no leading zero: for YAML 010 is 8.
var countForm = regexp.MustCompile(`^(0|[1-9][0-9]*)$`)

func readCount(node *yaml.Node) (Count, error) {
	value, err := strconv.ParseInt(node.Value, 10, 64)
	if err != nil || node.ShortTag() != intTag || !countForm.MatchString(node.Value) {
		return 0, wrong(node, "a count", "a whole number that is not negative")
	}
	return Count(value), nil
}

func readBool(node *yaml.Node) (bool, error) {
	value, err := strconv.ParseBool(node.Value)
	if err != nil || node.ShortTag() != boolTag {
		return false, wrong(node, "a truth value", "true or false, without quotes")
	}
	return value, nil
}

// sizeForm is a quantity of Kubernetes without an exponent, with which
// resource.ParseQuantity would calculate for hours (1e-2147483647), and without
// a leading zero and the units below 1.
var sizeForm = regexp.MustCompile(`^(0|[1-9][0-9]{0,18})(\.[0-9]{1,9})?(k|[MGTPE]|[KMGTPE]i)?$`)

// readSize reads a whole, positive number of bytes.
func readSize(node *yaml.Node) (uint64, error) {
	isText := slices.Contains([]string{strTag, intTag, floatTag}, node.ShortTag())
	if bytes, err := parseSize(node.Value); err == nil && isText {
		return bytes, nil
	}
	return 0, wrong(node, "a size",
		"a whole, positive number of bytes, such as 1073741824, 100G (100 * 10^9) or 100Gi (100 * 2^30)")
}

var errNoSize = errors.New("not a size")

func parseSize(text string) (uint64, error) {
	if !sizeForm.MatchString(text) {
		return 0, errNoSize
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, errNoSize
	}
	bytes := quantity.Value() // Rounded up, and capped.
	if bytes <= 0 || bytes == math.MaxInt64 || resource.NewQuantity(bytes, resource.BinarySI).Cmp(quantity) != 0 {
		return 0, errNoSize
	}
	return uint64(bytes), nil
}

// maxOvercommit tells a factor from a percentage.
const maxOvercommit = 100

// readOvercommit reads the factor by which thin volumes may exceed a capacity.
func readOvercommit(node *yaml.Node) (float64, error) {
	isNumber := node.ShortTag() == intTag || node.ShortTag() == floatTag
	value, err := strconv.ParseFloat(node.Value, 64)
	// Written so that NaN is refused.
	if inRange := value >= 1 && value <= maxOvercommit; err != nil || !isNumber || !inRange {
		return 0, wrong(node, "a factor", "a number from 1 (no more than there is) to "+strconv.Itoa(maxOvercommit))
	}
	return value, nil
}

func readPoolName(node *yaml.Node) (string, error) {
	return readText(node, volume.PoolName.MatchString, "the name of a pool",
		"at most 24 lowercase letters, digits and hyphens, with no hyphen at the ends")
}

func readDirectory(node *yaml.Node) (string, error) {
	isDirectory := func(text string) bool { return isCleanPath(text) && text != "/" }
	return readText(node, isDirectory, "the path of a directory",
		"an absolute path without . and .. elements and a slash at the end, such as "+DefaultDirectory)
}

func readSocket(node *yaml.Node) (string, error) {
	isSocket := func(text string) bool { return isCleanPath(text) && text != "/" }
	return readText(node, isSocket, "the path of a socket",
		"an absolute path without . and .. elements, such as /run/containerd/containerd.sock")
}

func readPattern(node *yaml.Node) (Pattern, error) {
	text, err := readPathPattern(node)
	return Pattern(text), err
}

// readPathPattern reads a pattern of filepath.Match.
func readPathPattern(node *yaml.Node) (string, error) {
	isPattern := func(text string) bool { return isCleanPath(text) && isGlob(text) }
	return readText(node, isPattern, "a path pattern", "an absolute path such as /dev/disk/by-id/*")
}

// readGlob reads a pattern of path.Match.
func readGlob(node *yaml.Node) (string, error) {
	// What sysfs says is compared without blanks around it.
	isFact := func(text string) bool { return isGlob(text) && text != "" && strings.TrimSpace(text) == text }
	return readText(node, isFact, "a pattern", `text such as "SAMSUNG*", in which * and ? stand for any characters and [ has its ]`)
}

// isGlob reports whether path.Match, and so filepath.Match, takes a pattern.
func isGlob(text string) bool {
	_, err := path.Match(text, "")
	return err == nil
}

func isCleanPath(text string) bool { return filepath.IsAbs(text) && filepath.Clean(text) == text }

// oneOf returns what reads one of some words.
func oneOf(words ...string) func(*yaml.Node) (string, error) {
	return func(node *yaml.Node) (string, error) {
		isWord := func(text string) bool { return slices.Contains(words, text) }
		return readText(node, isWord, "known here", "one of: "+strings.Join(words, ", "))
	}
}

// readText reads printable text, of which "" is never valid, nor is a list or a
// mapping, which have that. What YAML takes for a number or a date is
// refused: a serial number 0012 would depend on who rewrites the file.
func readText(node *yaml.Node, isValid func(string) bool, what, expected string) (string, error) {
	isPrintable := !strings.ContainsFunc(node.Value, func(r rune) bool { return !unicode.IsPrint(r) })
	if !isPrintable || !isValid(node.Value) {
		return "", wrong(node, what, expected)
	}
	if node.ShortTag() != strTag {
		return "", fmt.Errorf("line %d: %s is no text in YAML; write it in quotes: %q", node.Line, node.Value, node.Value)
	}
	return node.Value, nil
}
