package deploy

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestTheChartHasNoFaults(t *testing.T) {
	for _, values := range [][]string{
		{},
		{"--set", "controller.replicas=2,node.startupTaint=a/b,otlpEndpoint=http://c:4318"},
		{"--set", "sidecars.snapshotter.enabled=false,metrics.podMonitor.enabled=true,kubeletDir=/k"},
	} {
		if _, err := run(append([]string{"lint", "--strict", kubernetes, chart}, values...)...); err != nil {
			t.Errorf("%v: %v", values, err)
		}
	}
}

func TestTheManifestIsTheRenderedChart(t *testing.T) {
	command := exec.Command(folder + "/render.sh")
	command.Env = append(os.Environ(), "HELM="+helm)
	rendered, err := command.Output()
	if err != nil {
		t.Fatal(err)
	}
	if string(rendered) != read(t, "kubernetes.yaml") {
		t.Error("deploy/kubernetes.yaml is not what deploy/render.sh prints")
	}
}

func TestValuesThatAreWrongAreRefused(t *testing.T) {
	for value, named := range map[string]string{
		`replicas=2`:                                               "replicas",
		`controller.replicas=3`:                                    "replicas",
		`controller.replicas=-1`:                                   "replicas",
		`controller.replicas="2"`:                                  "replicas",
		`controller.extraArgs=["requests-per-second"]`:             "extraArgs",
		`controller.resources={"limit":{}}`:                        "limit",
		`controller.terminationGracePeriodSeconds=10`:              "terminationGracePeriodSeconds",
		`kubeletDir="var/lib/kubelet"`:                             "kubeletDir",
		`kubeletDir=""`:                                            "kubeletDir",
		`clusterId="Not Good"`:                                     "clusterId",
		`clusterId="` + strings.Repeat("a", 64) + `"`:              "clusterId",
		`otlpEndpoint="collector:4318"`:                            "otlpEndpoint",
		`otlpEndpoint="http://collector:4318/v1/traces"`:           "otlpEndpoint",
		`region="EWR-1"`:                                           "region",
		`logLevel="loud"`:                                          "logLevel",
		`logLevel="info,"`:                                         "logLevel",
		`metrics.address="0.0.0.0:9808"`:                           "address",
		`metrics.address="127.0.0.1"`:                              "address",
		`image.pullPolicy="Sometimes"`:                             "pullPolicy",
		`image.digest="sha256:12"`:                                 "digest",
		`token.key=""`:                                             "key",
		`token.value="secret"`:                                     "value",
		`node.metricsPort=98080`:                                   "metricsPort",
		`node.metricsAddress="everywhere"`:                         "metricsAddress",
		`node.maxUnavailable="10"`:                                 "maxUnavailable",
		`node.maxUnavailable="0%"`:                                 "maxUnavailable",
		`node.maxUnavailable=0`:                                    "maxUnavailable",
		`node.metricsAddress="127.1"`:                              "metricsAddress",
		`node.metricsAddress="127.0.0.256"`:                        "metricsAddress",
		`node.podLabels={"app":"a"}`:                               "app",
		`controller.podLabels={"app.kubernetes.io/component":"a"}`: "component",
		`controller.podLabels={"a":"not good"}`:                    "podLabels",
		`controller.podAnnotations={"kubectl.kubernetes.io/default-container":"a"}`:                                          "default-container",
		`controller.nodeSelector={"kubernetes.io/os":"windows"}`:                                                             "os",
		`metrics.podMonitor.labels={"app.kubernetes.io/name":"a"}`:                                                           "name",
		`storageClasses=[{"name":"a","parameters":{},"annotations":{"storageclass.kubernetes.io/is-default-class":"true"}}]`: "is-default-class",
		`node.reservedVolumes=12`:                                            "reservedVolumes",
		`node.startupTaint="a/b:NoSchedule"`:                                 "startupTaint",
		`node.startupTaint="a.b/"`:                                           "startupTaint",
		`sidecars.provisioner.timeout=120`:                                   "timeout",
		`sidecars.provisioner.volumeNameUuidLength=4`:                        "volumeNameUuidLength",
		`sidecars.attacher.workerThreads=0`:                                  "workerThreads",
		`leases.made="nobody"`:                                               "made",
		`sidecars.registrar={}`:                                              "registrar",
		`csiDriver.nodeAllocatableUpdatePeriodSeconds=5`:                     "nodeAllocatableUpdatePeriodSeconds",
		`storageClasses=[{"name":"a"}]`:                                      "parameters",
		`storageClasses=[{"name":"a","parameters":{},"reclaimPolicy":"No"}]`: "reclaimPolicy",
		`volumeSnapshotClass.create=true`:                                    "create",
	} {
		_, err := run("template", "x", chart, kubernetes, "--set-json", value)
		if err == nil {
			t.Errorf("%s is taken", value)
		} else if !strings.Contains(err.Error(), "values don't meet the specifications") || !strings.Contains(err.Error(), named) {
			t.Errorf("%s: the complaint does not name %s: %v", value, named, err)
		}
	}
}

func TestEveryValueIsInTheSchemaAndEveryOtherIsRefused(t *testing.T) {
	out, err := run("show", "values", chart)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	var walk func(path string, values, schema map[string]any)
	walk = func(path string, values, schema map[string]any) {
		described := dig[map[string]any](schema, "properties")
		if schema["additionalProperties"] != false {
			t.Errorf("%s takes what is not known", path)
		}
		for name, value := range values {
			seen++
			one := dig[map[string]any](described, name)
			if one == nil {
				t.Errorf("%s.%s is not in the schema", path, name)
			}
			// Others are lists, or what Kubernetes defines.
			if inner, is := value.(map[string]any); is && dig[string](one, "type") == "object" && one["properties"] != nil && !free(one) {
				walk(path+"."+name, inner, one)
			}
		}
		for name := range described {
			if _, there := values[name]; !there && path+"."+name != ".global" {
				t.Errorf("%s.%s has no default", path, name)
			}
		}
	}
	walk("", parse(t, out)[0], parse(t, read(t, "chart/values.schema.json"))[0])
	if seen < 80 {
		t.Errorf("only %d values were looked at", seen)
	}
}

// free tells whether a schema takes any name, as of a label.
func free(schema map[string]any) bool {
	others, is := schema["additionalProperties"].(map[string]any)
	return is && others["type"] == "string"
}

func TestTheKubeletsFolderIsUsedEverywhere(t *testing.T) {
	for distribution, kubelet := range map[string]string{
		"kubeadm, VKE, k3s, RKE2, Talos": "/var/lib/kubelet",
		"k0s":                            "/var/lib/k0s/kubelet",
		"microk8s":                       "/var/snap/microk8s/common/var/lib/kubelet",
	} {
		if !strings.Contains(read(t, "chart/values.yaml"), kubelet) || !strings.Contains(read(t, "README.md"), kubelet) {
			t.Errorf("%s: %s is not documented", distribution, kubelet)
		}
		for _, given := range []string{kubelet, kubelet + "/"} {
			node := render(t, fmt.Sprintf("kubeletDir=%q", given)).node(t)
			driver := container(t, node, "driver")
			for _, wanted := range []string{
				"--kubelet-dir=" + kubelet,
				"--kubelet-registration-dir=" + kubelet + "/plugins_registry",
				"--endpoint=unix://" + kubelet + "/plugins/block.csi.vultr.com/csi.sock",
			} {
				if !slices.Contains(texts(dig[[]any](driver, "args")), wanted) {
					t.Errorf("%s: there is no %s in %v", distribution, wanted, driver["args"])
				}
			}
			mount := dig[[]any](driver, "volumeMounts")[0]
			if dig[string](mount, "mountPath") != kubelet || dig[string](mount, "mountPropagation") != "Bidirectional" {
				t.Errorf("%s: %v", distribution, mount)
			}
			if path := dig[string](dig[[]any](node, "volumes")[0], "hostPath", "path"); path != kubelet {
				t.Errorf("%s: the volume is %s", distribution, path)
			}
			if kubelet != "/var/lib/kubelet" && strings.Contains(fmt.Sprint(node), "/var/lib/kubelet") &&
				!strings.Contains(kubelet, "/var/lib/kubelet") {
				t.Errorf("%s: /var/lib/kubelet is left somewhere: %v", distribution, node)
			}
		}
	}
}

func TestTwoControllersHoldALease(t *testing.T) {
	lease := "--lease=cloud-block-csi-controller"
	one, two := render(t), render(t, "controller.replicas=2")
	if args := texts(dig[[]any](container(t, one.controller(t), "driver"), "args")); slices.Contains(args, lease) {
		t.Error("one controller holds a lease")
	}
	if args := texts(dig[[]any](container(t, two.controller(t), "driver"), "args")); !slices.Contains(args, lease) {
		t.Errorf("two controllers hold none: %v", args)
	}
	for _, kind := range []string{"Lease", "PodDisruptionBudget"} {
		if one.get(kind, "cloud-block-csi-controller") != nil || two.get(kind, "cloud-block-csi-controller") == nil {
			t.Errorf("%s: for two and not for one", kind)
		}
	}
	if one.controller(t)["topologySpreadConstraints"] != nil || two.controller(t)["topologySpreadConstraints"] == nil {
		t.Error("two are spread over the nodes, and one is not")
	}
	if policy := dig[string](one.get("StatefulSet", "cloud-block-csi-controller"), "spec", "podManagementPolicy"); policy != "Parallel" {
		t.Errorf("it can't be changed later, and one that waits must not hold up another: %s", policy)
	}
	// Who waits for the lease or for the cloud would hold up an update.
	for _, pods := range []objects{one, two} {
		if probe := dig[string](container(t, pods.controller(t), "driver"), "readinessProbe", "httpGet", "path"); probe != "/healthz" {
			t.Errorf("the readiness probe is %s", probe)
		}
	}
}

func TestEverySidecarHasItsLeaseAndItsTime(t *testing.T) {
	pod := render(t).controller(t)
	var names []string
	for _, one := range containers(pod) {
		name := one["name"].(string)
		names = append(names, name)
		if name == "driver" {
			continue
		}
		for _, wanted := range []string{"--leader-election", "--timeout=240s", "--retry-interval-max=1m", "--csi-address=/csi/csi.sock"} {
			if !slices.Contains(texts(dig[[]any](one, "args")), wanted) {
				t.Errorf("%s has no %s", name, wanted)
			}
		}
	}
	if wanted := []string{"driver", "csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter"}; !slices.Equal(names, wanted) {
		t.Errorf("%v", names)
	}
	if len(containers(render(t).node(t))) != 1 {
		t.Error("the node has more than one container")
	}
}

func TestValuesBecomeFlags(t *testing.T) {
	all := render(t, `logLevel="debug"`, `region="EWR"`, `clusterId="one"`, `otlpEndpoint="http://c:4318"`, `node.reservedVolumes=2`,
		`node.startupTaint="a/b"`, `node.extraArgs=["--max-volumes-per-node=5"]`, `controller.extraArgs=["--requests-per-second=9"]`,
		`node.metricsAddress="127.0.0.1"`, `node.metricsPort=9999`, `metrics.port=9998`, `metrics.address="[::]"`, `node.terminationGracePeriodSeconds=90`,
		`image.digest="sha256:`+strings.Repeat("a", 64)+`"`)
	both := []string{"--log-level=debug", "--otlp-endpoint=http://c:4318"}
	for pod, wanted := range map[string][]string{
		"controller": append([]string{"--cluster-id=one", "--region=EWR", "--requests-per-second=9", "--metrics-addr=[::]:9998"}, both...),
		"node": append([]string{"--reserved-volumes=2", "--startup-taint=a/b", "--max-volumes-per-node=5",
			"--metrics-addr=127.0.0.1:9999", "--grace=90"}, both...),
	} {
		driver := container(t, map[string]func(*testing.T) map[string]any{"controller": all.controller, "node": all.node}[pod](t), "driver")
		args := texts(dig[[]any](driver, "args"))
		for _, flag := range wanted {
			if !slices.Contains(args, flag) {
				t.Errorf("%s: no %s in %v", pod, flag, args)
			}
		}
		if image := dig[string](driver, "image"); !strings.HasSuffix(image, "@sha256:"+strings.Repeat("a", 64)) {
			t.Errorf("%s: the image is %s", pod, image)
		}
		if config := dig[map[string]any](dig[[]any](driver, "envFrom")[0], "configMapRef"); config["name"] != "cloud-block-csi" || config["optional"] != true {
			t.Errorf("%s: %v", pod, config)
		}
	}
	driver := container(t, all.node(t), "driver")
	hook := texts(dig[[]any](driver, "lifecycle", "preStop", "exec", "command"))
	if !slices.Equal(hook, []string{"/usr/local/bin/cloud-block-csi", "pre-stop", "--grace=90"}) {
		t.Errorf("the hook doesn't know how long it has: %v", hook)
	}
}

func TestProbesGoToWhereTheDriverListens(t *testing.T) {
	for address, wanted := range map[string]string{"$(HOST_IP)": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "::1", "127.0.0.1": "127.0.0.1", "[::1]": "::1", "10.0.0.3": "10.0.0.3"} {
		driver := container(t, render(t, fmt.Sprintf("node.metricsAddress=%q", address)).node(t), "driver")
		listens := "--metrics-addr=" + address + ":9808"
		if address == "$(HOST_IP)" {
			// Which need not be an address that the machine has
			listens = "--metrics-addr=127.0.0.1:9808,$(HOST_IP):9808"
		}
		if args := texts(dig[[]any](driver, "args")); !slices.Contains(args, listens) {
			t.Errorf("%s: no %s in %v", address, listens, args)
		}
		for _, probe := range []string{"livenessProbe", "readinessProbe"} {
			if host := dig[any](driver, probe, "httpGet", "host"); host != wanted {
				t.Errorf("%s: the %s goes to %v, not %v", address, probe, host, wanted)
			}
		}
	}
}

func TestWhatIsGivenJoinsWhatIsThere(t *testing.T) {
	const selector = `={"kubernetes.io/os":"linux","a":"b"}`
	const labels = `={"a/b":"c"}`
	all := render(t, "controller.nodeSelector"+selector, "node.nodeSelector"+selector, "controller.podLabels"+labels, "node.podLabels"+labels,
		`storageClasses=[{"name":"a","default":true,"annotations":{"b":"c"},"parameters":{}}]`)
	for _, workload := range append(all.of("StatefulSet"), all.of("DaemonSet")...) {
		found := dig[map[string]any](workload, "spec", "template", "spec", "nodeSelector")
		if wanted := (map[string]any{"kubernetes.io/os": "linux", "a": "b"}); !maps.Equal(found, wanted) {
			t.Errorf("%s: the node selector is %v", workload.name(), found)
		}
		if found := dig[map[string]any](workload, "spec", "template", "metadata", "labels"); found["a/b"] != "c" || found["app"] != workload.name() {
			t.Errorf("%s: the labels are %v", workload.name(), found)
		}
	}
	annotations := dig[map[string]any](all.get("StorageClass", "a"), "metadata", "annotations")
	if wanted := (map[string]any{"b": "c", "storageclass.kubernetes.io/is-default-class": "true"}); !maps.Equal(annotations, wanted) {
		t.Errorf("the class's annotations are %v", annotations)
	}
}

func TestStorageComesFirstAndEverywhere(t *testing.T) {
	all := render(t)
	for workload, class := range map[string]string{"StatefulSet/controller": "system-cluster-critical", "DaemonSet/node": "system-node-critical"} {
		kind, part, _ := strings.Cut(workload, "/")
		pod := podOf(t, all.get(kind, "cloud-block-csi-"+part))
		if pod["priorityClassName"] != class {
			t.Errorf("the priority of the %s is %v", part, pod["priorityClassName"])
		}
		for _, one := range containers(pod) {
			for _, resource := range []string{"cpu", "memory"} {
				if dig[string](one, "resources", "requests", resource) == "" {
					t.Errorf("%s of the %s asks for no %s", one["name"], part, resource)
				}
			}
		}
	}
	// A tolerated taint is one of any name and effect: a pod with a volume may tolerate it as well.
	if found := fmt.Sprint(all.node(t)["tolerations"]); found != "[map[operator:Exists]]" {
		t.Errorf("the node's pod tolerates %s", found)
	}
	// Only the driver takes this one off, so it has to come there, whatever else was chosen.
	tainted := render(t, `node.tolerations=[]`, `node.startupTaint="a/b"`)
	if found := fmt.Sprint(tainted.node(t)["tolerations"]); found != "[map[key:a/b operator:Exists]]" {
		t.Errorf("the node's pod that takes a taint off tolerates %s", found)
	}
	if found := dig[map[string]any](all.node(t), "nodeSelector"); !maps.Equal(found, map[string]any{"kubernetes.io/os": "linux"}) {
		t.Errorf("the node's pod is on nodes with %v only", found)
	}
	for given, wanted := range map[string]any{`"10%"`: "10%", "3": 3.0} {
		strategy := dig[map[string]any](render(t, "node.maxUnavailable="+given).get("DaemonSet", "cloud-block-csi-node"), "spec", "updateStrategy")
		if strategy["type"] != "RollingUpdate" || dig[any](strategy, "rollingUpdate", "maxUnavailable") != wanted {
			t.Errorf("nodes are updated by %v", strategy)
		}
	}
	if found := dig[string](all.get("DaemonSet", "cloud-block-csi-node"), "spec", "updateStrategy", "rollingUpdate", "maxUnavailable"); found != "10%" {
		t.Errorf("%s of the nodes are updated at once", found)
	}
}

// The cluster may have a default class, and a newer one would count instead.
func TestNoClassIsTheClustersDefaultUnasked(t *testing.T) {
	for _, class := range render(t).of("StorageClass") {
		if found := dig[map[string]any](class, "metadata", "annotations"); len(found) > 0 {
			t.Errorf("%s has %v", class.name(), found)
		}
	}
}

// The volumes of a node are made where the node says that it is.
func TestTheRegionOfAVolumeThatNobodyWaitsForIsNoNodes(t *testing.T) {
	driver := container(t, render(t, `region="EWR"`).node(t), "driver")
	for _, arg := range texts(dig[[]any](driver, "args")) {
		if strings.HasPrefix(arg, "--region") {
			t.Errorf("a node is told that it is elsewhere: %s", arg)
		}
	}
	var given []any
	for _, entry := range dig[[]any](driver, "env") {
		if dig[string](entry, "name") == "CSI_REGION" {
			given = append(given, dig[any](entry, "value"))
		}
	}
	if !slices.Equal(given, []any{""}) {
		t.Errorf("the ConfigMap's region reaches the nodes: %v", given)
	}
}

// Prometheus doesn't reach what listens on the node alone, and would call it missing.
func TestTheMonitorLooksWhereThereIsSomethingToReach(t *testing.T) {
	const both, one = "[cloud-block-csi-controller cloud-block-csi-node]", "[cloud-block-csi-controller]"
	for address, wanted := range map[string]string{"$(HOST_IP)": both, "0.0.0.0": both, "[::]": both, "127.0.0.1": one, "[::1]": one} {
		monitor := render(t, "metrics.podMonitor.enabled=true", fmt.Sprintf("node.metricsAddress=%q", address)).get("PodMonitor", "cloud-block-csi")
		if found := fmt.Sprint(dig[any](dig[[]any](monitor, "spec", "selector", "matchExpressions")[0], "values")); found != wanted {
			t.Errorf("%s: it looks for %s", address, found)
		}
	}
}

func TestTheClassesAreThoseThatVultrsUsersHave(t *testing.T) {
	var names []string
	for _, class := range render(t).of("StorageClass") {
		names = append(names, class.name())
		if class["provisioner"] != "block.csi.vultr.com" || class["volumeBindingMode"] != "WaitForFirstConsumer" ||
			class["allowVolumeExpansion"] != true {
			t.Errorf("%v", class)
		}
		if retain := strings.HasSuffix(class.name(), "-retain"); retain != (class["reclaimPolicy"] == "Retain") {
			t.Errorf("%s is reclaimed by %v", class.name(), class["reclaimPolicy"])
		}
		if dig[string](class, "metadata", "labels", "app.kubernetes.io/component") != "storage-class" {
			t.Errorf("%s can't be left out by its label", class.name())
		}
	}
	wanted := []string{"vultr-block-storage", "vultr-block-storage-hdd", "vultr-block-storage-hdd-retain",
		"vultr-block-storage-retain", "vultr-vfs-storage", "vultr-vfs-storage-retain"}
	slices.Sort(names)
	if !slices.Equal(names, wanted) {
		t.Errorf("%v", names)
	}
}

func TestTheDriverObjectFitsTheClustersVersion(t *testing.T) {
	field := "nodeAllocatableUpdatePeriodSeconds"
	for version, there := range map[string]bool{"1.26.0": false, "1.34.9": false, "1.35.0": true, "1.36.3": true} {
		spec := dig[map[string]any](render(t, "--kube-version="+version).get("CSIDriver", "block.csi.vultr.com"), "spec")
		if (spec[field] != nil) != there {
			t.Errorf("%s: %v", version, spec)
		}
		for name, value := range map[string]any{"attachRequired": true, "podInfoOnMount": false, "fsGroupPolicy": "File",
			"seLinuxMount": true, "storageCapacity": false, "requiresRepublish": false} {
			if spec[name] != value {
				t.Errorf("%s: %s is %v", version, name, spec[name])
			}
		}
		if modes := texts(dig[[]any](spec, "volumeLifecycleModes")); !slices.Equal(modes, []string{"Persistent"}) {
			t.Errorf("%s: volumes live as %v", version, modes)
		}
	}
	if dig[map[string]any](render(t, "csiDriver."+field+"=0").get("CSIDriver", "block.csi.vultr.com"), "spec")[field] != nil {
		t.Error("0 does not turn it off")
	}
	for _, c := range []struct {
		values []string
		there  bool
	}{
		{nil, false},
		{[]string{snapshotCRD}, true},
		{[]string{snapshotCRD, `volumeSnapshotClass.create="never"`}, false},
		{[]string{`volumeSnapshotClass.create="always"`}, true},
	} {
		if classes := render(t, c.values...).of("VolumeSnapshotClass"); (len(classes) == 1) != c.there {
			t.Errorf("%v: %v", c.values, classes)
		}
	}
}
