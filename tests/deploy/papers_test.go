package deploy

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// headings returns the second-level headings of a page.
func headings(page string) []string {
	var found []string
	for _, line := range strings.Split(page, "\n") {
		if heading, yes := strings.CutPrefix(line, "## "); yes {
			found = append(found, heading)
		}
	}
	return found
}

func TestEveryAlertHasItsRunbookEntry(t *testing.T) {
	all := known(t)
	entries := headings(read(t, "runbook.md"))
	var alerts []string
	for _, rule := range rules(t) {
		alerts = append(alerts, rule.Alert)
		if !slices.Contains(entries, rule.Alert) {
			t.Errorf("%s has no entry in the runbook", rule.Alert)
		}
		wanted := "https://github.com/cloud-block-csi/cloud-block-csi/blob/main/deploy/runbook.md#" + strings.ToLower(rule.Alert)
		if rule.Annotations["runbook_url"] != wanted {
			t.Errorf("%s: the link is %s", rule.Alert, rule.Annotations["runbook_url"])
		}
		for _, annotation := range []string{"summary", "description"} {
			if rule.Annotations[annotation] == "" {
				t.Errorf("%s has no %s", rule.Alert, annotation)
			}
		}
		if !slices.Contains([]string{"warning", "critical"}, rule.Labels["severity"]) || rule.For == 0 {
			t.Errorf("%s: severity %q, for %v", rule.Alert, rule.Labels["severity"], rule.For)
		}
		query := expression(t, rule.Expr)
		for _, missing := range all.missing(query) {
			t.Errorf("%s: there is no %s", rule.Alert, missing)
		}
		for _, text := range rule.Annotations {
			for _, label := range mentioned(text, `\$labels\.(\w+)`) {
				if !slices.Contains(all.labels(query), label) {
					t.Errorf("%s: what it finds has no label %s", rule.Alert, label)
				}
			}
		}
	}
	for _, entry := range entries {
		if !slices.Contains(alerts, entry) {
			t.Errorf("the runbook's entry %s belongs to no alert", entry)
		}
	}
}

func TestTheDashboardShowsWhatTheDriverHas(t *testing.T) {
	var board struct {
		UID    string `json:"uid"`
		Panels []struct {
			ID          int    `json:"id"`
			Title       string `json:"title"`
			Description string `json:"description"`
			Targets     []struct {
				Expr   string `json:"expr"`
				Legend string `json:"legendFormat"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal([]byte(read(t, "dashboard.json")), &board); err != nil {
		t.Fatal(err)
	}
	all, seen := known(t), map[int]bool{}
	for _, panel := range board.Panels {
		if seen[panel.ID] || panel.Title == "" {
			t.Errorf("panel %d (%s) is there twice, or has no title", panel.ID, panel.Title)
		}
		seen[panel.ID] = true
		for _, target := range panel.Targets {
			query := expression(t, strings.ReplaceAll(target.Expr, "$__rate_interval", "5m"))
			for _, missing := range all.missing(query) {
				t.Errorf("%s: there is no %s", panel.Title, missing)
			}
			for _, label := range mentioned(target.Legend, `{{(\w+)}}`) {
				if !slices.Contains(all.labels(query), label) {
					t.Errorf("%s: what it shows has no label %s", panel.Title, label)
				}
			}
		}
	}
	if len(board.Panels) < 8 || board.UID == "" {
		t.Errorf("%d panels, uid %q", len(board.Panels), board.UID)
	}
}

// blocks returns the fenced blocks of a page that are marked with a word, as one script.
func blocks(page, mark string) string {
	var script strings.Builder
	inside := false
	for _, line := range strings.SplitAfter(page, "\n") {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = strings.TrimSpace(line) == "```sh "+mark
		case inside:
			script.WriteString(line)
		}
	}
	return script.String()
}

func TestTheGuideNeverHasBothDriversAtOnce(t *testing.T) {
	page := read(t, "migration.md")
	for _, mark := range []string{"pull", "migrate", "back", "check"} {
		script := blocks(page, mark)
		check := exec.Command("bash", "-n")
		check.Stdin = strings.NewReader(script)
		if out, err := check.CombinedOutput(); err != nil || script == "" {
			t.Errorf("%s: %v %s", mark, err, out)
		}
	}
	inOrder := func(mark string, parts ...string) {
		t.Helper()
		script := blocks(page, mark)
		for _, part := range parts {
			_, after, found := strings.Cut(script, part)
			if !found {
				t.Errorf("%s: there is no %q, or not at its place", mark, part)
				return
			}
			script = after
		}
	}
	inOrder("migrate", "scale statefulset csi-vultr-controller --replicas=0", "wait --for=delete pod -l app=csi-vultr-controller",
		"delete daemonset csi-vultr-node", "wait --for=delete pod -l app=csi-vultr-node", "delete csidriver block.csi.vultr.com",
		"apply -f deploy/kubernetes.yaml", "rollout status statefulset/cloud-block-csi-controller")
	inOrder("back", "scale statefulset cloud-block-csi-controller --replicas=0", "wait --for=delete pod -l app=cloud-block-csi-controller",
		"delete daemonset cloud-block-csi-node", "wait --for=delete pod -l app=cloud-block-csi-node", "delete -f deploy/kubernetes.yaml",
		"apply -f vultr-csi.yml")
	for _, mark := range []string{"migrate", "back", "check"} {
		for _, fault := range touched(blocks(page, mark)) {
			t.Errorf("%s: the guide does it to what is the user's: %s", mark, fault)
		}
	}
}

func TestTheGuideLeavesNothingOfTheOldDriversThatHelmRefuses(t *testing.T) {
	migrate := blocks(read(t, "migration.md"), "migrate")
	before, _, _ := strings.Cut(strings.ReplaceAll(migrate, "\\\n", ""), "apply -f deploy/kubernetes.yaml")
	_, after, _ := strings.Cut(before, "delete lease ")
	line, _, _ := strings.Cut(after, "\n")
	for _, lease := range render(t).of("Lease") {
		if !slices.Contains(strings.Fields(line), lease.name()) {
			t.Errorf("the lease %s is not taken away", lease.name())
		}
	}
	for _, theirs := range []string{"clusterrolebinding csi-vultr-snapshotter-binding", "clusterrole csi-vultr-snapshotter-role",
		"get role,rolebinding,poddisruptionbudget -o name | { grep /csi-vultr", "csidriver block.csi.vultr.com"} {
		if !strings.Contains(before, theirs) {
			t.Errorf("the guide leaves %s", theirs)
		}
	}
}

func TestTheGuideCanBeTakenUpAgainAndLeavesClassesAlone(t *testing.T) {
	// What has no such label is not left out by it.
	const selector = ` -l 'app.kubernetes.io/component notin (storage-class, snapshot-class)'`
	for _, mark := range []string{"migrate", "back"} {
		for _, line := range strings.Split(strings.ReplaceAll(blocks(read(t, "migration.md"), mark), "\\\n", ""), "\n") {
			if strings.Contains(line, " delete ") && !strings.Contains(line, "--ignore-not-found") {
				t.Errorf("%s fails the second time", line)
			}
			if strings.Contains(line, "-f deploy/kubernetes.yaml") && !strings.Contains(line, selector) {
				t.Errorf("%s is done to classes, too", line)
			}
		}
	}
	manifest := parse(t, read(t, "kubernetes.yaml"))
	for kind, component := range map[string]string{"StorageClass": "storage-class", "VolumeSnapshotClass": "snapshot-class"} {
		for _, class := range manifest.of(kind) {
			if found := dig[string](class, "metadata", "labels", "app.kubernetes.io/component"); found != component {
				t.Errorf("%s %s is labelled %s", kind, class.name(), found)
			}
		}
	}
}

// What the way back does to PersistentVolumes, and nothing else: the old provisioner doesn't know the mark.
const unmarks = `kubectl patch pv {} --type=strategic -p ` +
	`'{"metadata": {"$deleteFromPrimitiveList/finalizers": ["external-provisioner.volume.kubernetes.io/finalizer"]}}'`

// touched returns the commands that change or delete what is the user's: volumes, claims, attachments, classes, Secrets.
func touched(script string) []string {
	theirs := regexp.MustCompile(`(?i)(^|[\s,])(pv|pvcs?|persistentvolume(claim)?s?|volumeattachments?|sc|storageclass(es)?|` +
		`volumesnapshot(class|content)?(es|s)?|vs|vsc|vsclass|secrets?)(\.[a-z.0-9]+)?([\s,/]|$)`)
	changes := regexp.MustCompile(`kubectl\b.*\s(delete|patch|edit|replace|label|annotate)\s(.*)`)
	var found []string
	for _, line := range strings.Split(strings.ReplaceAll(script, "\\\n", " "), "\n") {
		change := changes.FindStringSubmatch(line)
		if change != nil && theirs.MatchString(change[2]) && !strings.HasSuffix(line, unmarks) {
			found = append(found, line)
		}
	}
	return found
}

func TestWhatTheGuideMustNotDoIsSeen(t *testing.T) {
	for _, command := range []string{"kubectl delete pv a", "kubectl delete pv/a", "kubectl delete -n a pvc/a", "kubectl -n a delete secret a",
		"kubectl patch pv a -p '{}'", "kubectl patch persistentvolume/a --type=merge -p '{}'", "kubectl delete sc,csidriver a",
		"kubectl delete volumeattachments --all", "kubectl delete \\\n    volumesnapshotclasses.snapshot.storage.k8s.io a",
		"kubectl label volumesnapshotclass a b=c", "true | xargs kubectl delete pv"} {
		if touched(command) == nil {
			t.Errorf("%s passes", command)
		}
	}
	for _, command := range []string{"kubectl get pv", "kubectl delete csidriver a", "kubectl delete lease a", "kubectl get pv | xargs " + unmarks} {
		if touched(command) != nil {
			t.Errorf("%s is taken for a fault", command)
		}
	}
}

func TestTheReadmeTakesAwayTheLeasesThatTheComponentsMade(t *testing.T) {
	_, after, _ := strings.Cut(strings.ReplaceAll(read(t, "README.md"), "\\\n", ""), "kubectl -n kube-system delete lease ")
	line, _, _ := strings.Cut(after, "\n")
	named := slices.DeleteFunc(strings.Fields(line), func(word string) bool { return strings.HasPrefix(word, "--") })
	var made []string
	for _, lease := range render(t, "controller.replicas=2").of("Lease") {
		made = append(made, lease.name())
	}
	slices.Sort(named)
	slices.Sort(made)
	if !slices.Equal(named, made) {
		t.Errorf("the README deletes the leases %v, and there are %v", named, made)
	}
}
