package hotplug

import (
	"fmt"
	"strings"

	"github.com/rawblock-csi/rawblock-csi/pkg/volume"
)

// Annotation of a pod asks that the pod's block volume be attached to a container
// of another pod of its namespace:
//
//	POD/CONTAINER[@POD-UID]:PATH[:ro]
const Annotation = "hotplug.rawblock.dev/target"

// parseAnnotation reads the annotation of a pod in the namespace. Errors:
// volume.ErrInvalid.
func parseAnnotation(namespace, text string) (target Target, path string, readOnly bool, err error) {
	rest, readOnly := strings.CutSuffix(text, ":ro")
	container, path, hasPath := strings.Cut(rest, ":")
	container, uid, hasUID := strings.Cut(container, "@")
	name, container, hasContainer := strings.Cut(container, "/")
	if !hasPath || !hasContainer || name == "" || container == "" || hasUID && uid == "" || strings.ContainsAny(container+uid, "/@") {
		return Target{}, "", false, fmt.Errorf("%w: the annotation %s is %q; expected POD/CONTAINER:PATH, such as db-0/postgres:/dev/xvdb, with @POD-UID after CONTAINER to name one pod of that name, and :ro after PATH to read only",
			volume.ErrInvalid, Annotation, text)
	}
	if err := checkPath(path); err != nil {
		return Target{}, "", false, fmt.Errorf("annotation %s: %w", Annotation, err)
	}
	return Target{Pod: &Pod{Namespace: namespace, Name: name, UID: uid, Container: container}}, path, readOnly, nil
}
