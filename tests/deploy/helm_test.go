// Package deploy holds the tests of the Helm chart, the rendered manifest, and the papers beside them.
package deploy

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const (
	folder = "../../deploy"
	chart  = folder + "/chart"
	// Helm takes Kubernetes for a very old one, unless its release scripts or a flag tell it otherwise.
	kubernetes = "--kube-version=1.36.3"
	// And for one without snapshots.
	snapshotCRD = "--api-versions=snapshot.storage.k8s.io/v1/VolumeSnapshotClass"
)

var helm string

// TestMain has Go build Helm, or find it in its cache.
func TestMain(m *testing.M) {
	build := exec.Command("go", "tool", "-n", "helm")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	path, err := build.Output()
	if err != nil {
		fmt.Fprintln(os.Stderr, "helm cannot be built:", err)
		os.Exit(1)
	}
	helm = strings.TrimSpace(string(path))
	os.Exit(m.Run())
}

// run runs Helm and returns what it printed, and its complaints as an error.
func run(arguments ...string) (string, error) {
	command := exec.Command(helm, arguments...)
	// Nothing of whoever runs the tests: no cluster, no settings
	command.Env = []string{"HOME=" + os.TempDir(), "PATH=" + os.Getenv("PATH")}
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%w: %s", err, complaints.String())
	}
	return out.String(), nil
}

// object is one object of a manifest.
type object map[string]any

func (o object) kind() string { return o["kind"].(string) }
func (o object) name() string { return dig[string](o, "metadata", "name") }

// dig goes down a tree by keys; what is not there is the zero value.
func dig[T any](tree any, keys ...string) T {
	for _, key := range keys {
		switch node := tree.(type) {
		case object:
			tree = node[key]
		case map[string]any:
			tree = node[key]
		default:
			var none T
			return none
		}
	}
	found, _ := tree.(T)
	return found
}

type objects []object

func parse(t *testing.T, manifest string) objects {
	t.Helper()
	var all objects
	for _, document := range strings.Split("\n"+manifest, "\n---") {
		var one object
		if err := yaml.UnmarshalStrict([]byte(document), &one); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		if one != nil {
			all = append(all, one)
		}
	}
	return all
}

// render renders the chart with values, each "name=value".
func render(t *testing.T, values ...string) objects {
	t.Helper()
	arguments := []string{"template", "cloud-block-csi", chart, "--namespace", "kube-system", kubernetes}
	for _, value := range values {
		if strings.HasPrefix(value, "--") {
			arguments = append(arguments, value)
		} else {
			arguments = append(arguments, "--set-json", value)
		}
	}
	out, err := run(arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, out)
}

func (all objects) of(kind string) objects {
	var found objects
	for _, one := range all {
		if one.kind() == kind {
			found = append(found, one)
		}
	}
	return found
}

// get returns the object, or nil if there is none.
func (all objects) get(kind, name string) object {
	for _, one := range all.of(kind) {
		if one.name() == name {
			return one
		}
	}
	return nil
}

func (all objects) controller(t *testing.T) map[string]any {
	t.Helper()
	return podOf(t, all.get("StatefulSet", "cloud-block-csi-controller"))
}

func (all objects) node(t *testing.T) map[string]any {
	t.Helper()
	return podOf(t, all.get("DaemonSet", "cloud-block-csi-node"))
}

func podOf(t *testing.T, workload object) map[string]any {
	t.Helper()
	pod := dig[map[string]any](workload, "spec", "template", "spec")
	if pod == nil {
		t.Fatal("there is no such workload")
	}
	return pod
}

func containers(pod map[string]any) []map[string]any {
	var all []map[string]any
	for _, one := range dig[[]any](pod, "containers") {
		all = append(all, one.(map[string]any))
	}
	return all
}

func container(t *testing.T, pod map[string]any, name string) map[string]any {
	t.Helper()
	for _, one := range containers(pod) {
		if one["name"] == name {
			return one
		}
	}
	t.Fatalf("there is no container %s", name)
	return nil
}

func texts(list []any) []string {
	var all []string
	for _, one := range list {
		all = append(all, one.(string))
	}
	return all
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
