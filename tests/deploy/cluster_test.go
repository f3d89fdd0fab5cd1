package deploy

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// cluster is as much of an API server as Helm asks before it renders: what kinds there are, and the objects.
func cluster(t *testing.T, there ...object) string {
	answer := func(w http.ResponseWriter, status int, body any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		if err := json.NewEncoder(w).Encode(body); err != nil {
			t.Error(err)
		}
	}
	kinds := func(version string, names ...string) object {
		var resources []object
		for _, name := range names {
			resources = append(resources, object{"name": plural(name), "singularName": strings.ToLower(name),
				"kind": name, "namespaced": !strings.HasSuffix(name, "Class"), "verbs": []string{"get", "list"}})
		}
		return object{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch path := r.URL.Path; {
		case path == "/version":
			answer(w, 200, object{"major": "1", "minor": "36", "gitVersion": "v1.36.3"})
		case path == "/api":
			answer(w, 200, object{"kind": "APIVersions", "versions": []string{"v1"}})
		case path == "/apis":
			group := func(name string) object {
				version := object{"groupVersion": name + "/v1", "version": "v1"}
				return object{"name": name, "versions": []object{version}, "preferredVersion": version}
			}
			answer(w, 200, object{"kind": "APIGroupList", "apiVersion": "v1", "groups": []object{
				group("storage.k8s.io"), group("apps"), group("snapshot.storage.k8s.io")}})
		case path == "/api/v1":
			answer(w, 200, kinds("v1", "Secret"))
		case path == "/apis/storage.k8s.io/v1":
			answer(w, 200, kinds("storage.k8s.io/v1", "StorageClass"))
		case path == "/apis/snapshot.storage.k8s.io/v1":
			answer(w, 200, kinds("snapshot.storage.k8s.io/v1", "VolumeSnapshotClass"))
		case path == "/apis/apps/v1":
			answer(w, 200, kinds("apps/v1", "StatefulSet"))
		default:
			for _, one := range there {
				if strings.HasSuffix(path, "/"+plural(one.kind())+"/"+one.name()) {
					answer(w, 200, one)
					return
				}
			}
			answer(w, 404, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
		}
	}))
	t.Cleanup(server.Close)
	config := filepath.Join(t.TempDir(), "config")
	text := `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [{"name": "c", "cluster": {"server": "` +
		server.URL + `"}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}]}`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return config
}

// plural is what a kind of object is called in paths.
func plural(kind string) string {
	name := strings.ToLower(kind) + "s"
	if strings.HasSuffix(kind, "s") {
		name = strings.ToLower(kind) + "es"
	}
	return name
}

func class(name string, annotations object) object {
	return object{"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "block.csi.vultr.com",
		"metadata": object{"name": name, "annotations": annotations}}
}

func snapshotClass(annotations object) object {
	return object{"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "driver": "block.csi.vultr.com",
		"deletionPolicy": "Delete", "metadata": object{"name": "vultr-block-storage", "annotations": annotations}}
}

func TestClassesThatAreThereAreLeftAsTheyAre(t *testing.T) {
	ours := object{"meta.helm.sh/release-name": "cloud-block-csi", "meta.helm.sh/release-namespace": "kube-system"}
	another := object{"meta.helm.sh/release-name": "another", "meta.helm.sh/release-namespace": "kube-system"}
	for _, c := range []struct {
		there objects
		left  []string
	}{
		{nil, nil},
		// Vultr's own driver's
		{objects{class("vultr-block-storage", nil), class("vultr-vfs-storage", object{}), snapshotClass(nil)},
			[]string{"StorageClass/vultr-block-storage", "StorageClass/vultr-vfs-storage", "VolumeSnapshotClass/vultr-block-storage"}},
		// An upgrade keeps what the release made: an object that isn't rendered any more is deleted.
		{objects{class("vultr-block-storage", ours), snapshotClass(ours)}, nil},
		{objects{class("vultr-block-storage", another)}, []string{"StorageClass/vultr-block-storage"}},
		{objects{snapshotClass(another)}, []string{"VolumeSnapshotClass/vultr-block-storage"}},
	} {
		config := cluster(t, c.there...)
		out, err := run("template", "cloud-block-csi", chart, kubernetes, snapshotCRD, "--namespace", "kube-system", "--dry-run=server",
			"--kubeconfig", config)
		if err != nil {
			t.Fatal(err)
		}
		rendered := parse(t, out)
		for _, name := range []string{"StorageClass/vultr-block-storage", "StorageClass/vultr-block-storage-retain",
			"StorageClass/vultr-vfs-storage", "VolumeSnapshotClass/vultr-block-storage"} {
			kind, name, _ := strings.Cut(name, "/")
			if there := rendered.get(kind, name) != nil; there == slices.Contains(c.left, kind+"/"+name) {
				t.Errorf("%v: the %s %s is rendered: %v", c.there, kind, name, there)
			}
		}
	}
}

func TestTheNumberOfControllersIsChangedWhenNoneRuns(t *testing.T) {
	const name, lease = "cloud-block-csi-controller", "--lease=cloud-block-csi-controller"
	set := func(replicas int, arguments ...string) object {
		pod := object{"containers": []object{{"name": "driver", "args": append([]string{"controller"}, arguments...)}}}
		return object{"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": object{"name": name, "namespace": "kube-system"},
			"spec": object{"replicas": replicas, "template": object{"spec": pod}}, "status": object{"replicas": replicas}}
	}
	ending := func(set object) object {
		set["status"] = object{"replicas": 1}
		return set
	}
	for _, c := range []struct {
		there   objects
		wanted  string
		refused bool
	}{
		{nil, "1", false},
		{nil, "2", false},
		{objects{set(1)}, "1", false},
		{objects{set(2, lease)}, "2", false},
		{objects{set(1)}, "2", true},
		{objects{set(2, lease)}, "1", true},
		{objects{set(0)}, "2", false},
		{objects{set(0, lease)}, "1", false},
		{objects{ending(set(0))}, "2", true},
		{objects{ending(set(0, lease))}, "1", true},
		{objects{set(1)}, "0", false},
		{objects{set(2, lease)}, "0", false},
	} {
		_, err := run("template", "cloud-block-csi", chart, kubernetes, "--namespace", "kube-system", "--dry-run=server",
			"--kubeconfig", cluster(t, c.there...), "--set", "controller.replicas="+c.wanted)
		switch {
		case !c.refused && err != nil:
			t.Errorf("%v, and %s are wanted: %v", c.there, c.wanted, err)
		case c.refused && (err == nil || !strings.Contains(err.Error(), "controller.replicas=0") || !strings.Contains(err.Error(), "wait --for=delete")):
			t.Errorf("%v, and %s are wanted: not refused, but: %v", c.there, c.wanted, err)
		}
	}
}
