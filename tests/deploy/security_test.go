package deploy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// rights returns the rules of a role, one a line, as "group/resource: verbs".
func rights(role object) []string {
	var lines []string
	for _, rule := range dig[[]any](role, "rules") {
		verbs := strings.Join(texts(dig[[]any](rule, "verbs")), " ")
		for _, group := range texts(dig[[]any](rule, "apiGroups")) {
			for _, resource := range texts(dig[[]any](rule, "resources")) {
				line := strings.TrimPrefix(group+"/", "/") + resource + ": " + verbs
				if named := dig[[]any](rule, "resourceNames"); named != nil {
					line += " of " + strings.Join(texts(named), " ")
				}
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

func TestNobodyHasMoreRightsThanTheseLines(t *testing.T) {
	controller := []string{
		"events: create patch",
		"nodes: get list watch",
		"persistentvolumeclaims/status: patch",
		"persistentvolumeclaims: get list watch update",
		"persistentvolumes: get list watch create patch delete",
		"snapshot.storage.k8s.io/volumesnapshotclasses: get list watch",
		"snapshot.storage.k8s.io/volumesnapshotcontents/status: update patch",
		"snapshot.storage.k8s.io/volumesnapshotcontents: get list watch update patch",
		"snapshot.storage.k8s.io/volumesnapshots: get list watch update",
		"storage.k8s.io/csinodes: get list watch",
		"storage.k8s.io/storageclasses: get list watch",
		"storage.k8s.io/volumeattachments/status: patch",
		"storage.k8s.io/volumeattachments: get list watch patch",
		"storage.k8s.io/volumeattributesclasses: get",
	}
	without := slices.DeleteFunc(slices.Clone(controller), func(line string) bool {
		return strings.Contains(line, "volumesnapshotclasses") || strings.Contains(line, "volumesnapshotcontents")
	})
	without = append(without, "snapshot.storage.k8s.io/volumesnapshotcontents: get list")
	slices.Sort(without)
	leases := "block-csi-vultr-com external-attacher-leader-block-csi-vultr-com external-resizer-block-csi-vultr-com " +
		"external-snapshotter-leader-block-csi-vultr-com"
	for _, c := range []struct {
		values           []string
		controller, node []string
		leases           string
	}{
		{nil, controller, []string{"nodes: get", "storage.k8s.io/volumeattachments: list"}, leases},
		{[]string{"controller.replicas=2"}, controller, []string{"nodes: get", "storage.k8s.io/volumeattachments: list"},
			leases + " cloud-block-csi-controller"},
		{[]string{`node.startupTaint="a/b"`}, controller,
			[]string{"nodes: get patch", "storage.k8s.io/csinodes: get", "storage.k8s.io/volumeattachments: list"}, leases},
		{[]string{"sidecars.snapshotter.enabled=false"}, without, []string{"nodes: get", "storage.k8s.io/volumeattachments: list"},
			strings.TrimSuffix(leases, " external-snapshotter-leader-block-csi-vultr-com")},
		{[]string{`leases.made="components"`, "controller.replicas=2"}, controller,
			[]string{"nodes: get", "storage.k8s.io/volumeattachments: list"}, leases + " cloud-block-csi-controller"},
	} {
		all := render(t, c.values...)
		for role, wanted := range map[string][]string{"cloud-block-csi-controller": c.controller, "cloud-block-csi-node": c.node} {
			if found := rights(all.get("ClusterRole", role)); !slices.Equal(found, wanted) {
				t.Errorf("%v: %s may\n%s\nand not\n%s", c.values, role, strings.Join(found, "\n"), strings.Join(wanted, "\n"))
			}
			binding := all.get("ClusterRoleBinding", role)
			subjects := dig[[]any](binding, "subjects")
			if dig[string](binding, "roleRef", "name") != role || len(subjects) != 1 || dig[string](subjects[0], "name") != role {
				t.Errorf("%v", binding)
			}
		}
		// By name, and not to be made: what an uninstall has taken away doesn't come back.
		rightsWanted, leasesWanted := []string{"coordination.k8s.io/leases: get update of " + c.leases}, strings.Fields(c.leases)
		if slices.Contains(c.values, `leases.made="components"`) {
			rightsWanted, leasesWanted = append([]string{"coordination.k8s.io/leases: create"}, rightsWanted...), nil
		}
		if found := rights(all.get("Role", "cloud-block-csi-controller")); !slices.Equal(found, rightsWanted) {
			t.Errorf("%v: %v and not %v", c.values, found, rightsWanted)
		}
		var there []string
		for _, lease := range all.of("Lease") {
			there = append(there, lease.name())
		}
		slices.Sort(there)
		slices.Sort(leasesWanted)
		if !slices.Equal(there, leasesWanted) {
			t.Errorf("%v: the leases %v are there, and not %v", c.values, there, leasesWanted)
		}
		if roles := append(all.of("ClusterRole"), all.of("Role")...); len(roles) != 3 {
			t.Errorf("%v: %d roles", c.values, len(roles))
		}
	}
}

func TestOnlyTheControllersDriverHasTheToken(t *testing.T) {
	for _, manifest := range []objects{render(t), render(t, "controller.replicas=2"), parse(t, read(t, "kubernetes.yaml"))} {
		for _, pod := range []map[string]any{manifest.controller(t), manifest.node(t)} {
			for _, one := range containers(pod) {
				if strings.Contains(fmt.Sprint(one["env"], one["envFrom"]), "secret") {
					t.Errorf("%s has a Secret in its environment: %v", one["name"], one)
				}
			}
		}
		if strings.Contains(strings.ToLower(fmt.Sprint(manifest.node(t))), "secret") {
			t.Error("the node's pod knows of a Secret")
		}
		controller := manifest.controller(t)
		for _, one := range containers(controller) {
			mounts := fmt.Sprint(one["volumeMounts"])
			if has := strings.Contains(mounts, "name:token"); has != (one["name"] == "driver") {
				t.Errorf("%s: the token is mounted: %v", one["name"], has)
			}
			if strings.Contains(mounts, "subPath") {
				t.Errorf("%s: a subPath is not followed when the Secret changes", one["name"])
			}
		}
		for _, kind := range []string{"Secret", "ConfigMap"} {
			if found := manifest.of(kind); found != nil {
				t.Errorf("the manifest brings its own %s", kind)
			}
		}
	}
}

func TestTheControllerHasNoPrivileges(t *testing.T) {
	pod := render(t).controller(t)
	security := dig[map[string]any](pod, "securityContext")
	if security["runAsNonRoot"] != true || dig[string](security, "seccompProfile", "type") != "RuntimeDefault" ||
		fmt.Sprint(security["runAsUser"], security["runAsGroup"], security["fsGroup"]) != "65532 65532 65532" {
		t.Errorf("%v", security)
	}
	for _, one := range containers(pod) {
		own := dig[map[string]any](one, "securityContext")
		if own["allowPrivilegeEscalation"] != false || own["readOnlyRootFilesystem"] != true ||
			fmt.Sprint(dig[[]any](own, "capabilities", "drop")) != "[ALL]" || own["privileged"] != nil || len(own) != 3 {
			t.Errorf("%s: %v", one["name"], own)
		}
	}
	if strings.Contains(fmt.Sprint(pod["volumes"]), "hostPath") || pod["hostNetwork"] != nil {
		t.Errorf("the controller has something of the host: %v", pod)
	}
}

func TestTheNodeHasThesePrivilegesAndNoOthers(t *testing.T) {
	pod := render(t).node(t)
	for _, other := range []string{"hostPID", "hostIPC", "shareProcessNamespace", "initContainers"} {
		if pod[other] != nil {
			t.Errorf("the node's pod has %s", other)
		}
	}
	var paths []string
	for _, volume := range dig[[]any](pod, "volumes") {
		if path := dig[string](volume, "hostPath", "path"); path != "" {
			paths = append(paths, path)
		}
	}
	if wanted := []string{"/var/lib/kubelet", "/dev"}; !slices.Equal(paths, wanted) {
		t.Errorf("the node's pod has %v of the host", paths)
	}
	if pod["hostNetwork"] != true {
		t.Errorf("the node's pod can't be sure of the metadata service: %v", pod)
	}
	own := dig[map[string]any](container(t, pod, "driver"), "securityContext")
	if own["privileged"] != true || own["readOnlyRootFilesystem"] != true {
		t.Errorf("%v", own)
	}
}
