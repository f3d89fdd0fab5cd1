package deploy

import (
	"encoding/json"
	"log/slog"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

var promql = parser.NewParser(parser.Options{})

// known returns the names of all metrics that the driver has, as the table in metrics.md lists them; that table is held
// against the code by a test of the driver's. A histogram has three.
func known(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	row := regexp.MustCompile("(?m)^\\| `(csi_[a-z_]+)` \\| ([a-z]+) \\|")
	for _, found := range row.FindAllStringSubmatch(read(t, "metrics.md"), -1) {
		if found[2] != "histogram" {
			names[found[1]] = true
			continue
		}
		for _, suffix := range []string{"_bucket", "_count", "_sum"} {
			names[found[1]+suffix] = true
		}
	}
	if !names["csi_rpc_seconds_count"] || !names["csi_changes_stuck"] {
		t.Fatalf("the table is not found in metrics.md: %v", names)
	}
	return names
}

// unknown returns the metrics in a query that the driver does not have.
func unknown(t *testing.T, query string, names map[string]bool) []string {
	t.Helper()
	expression, err := promql.ParseExpr(query)
	if err != nil {
		t.Errorf("%s: %v", query, err)
		return nil
	}
	var missing []string
	for _, selector := range parser.ExtractSelectors(expression) {
		for _, matcher := range selector {
			name := matcher.Value
			if matcher.Name != labels.MetricName || name == "up" || name == "kube_daemonset_status_number_unavailable" {
				continue
			}
			if !names[name] {
				missing = append(missing, name)
			}
		}
	}
	return missing
}

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
	rules, errs := rulefmt.Parse([]byte(read(t, "alerts.yaml")), false, model.UTF8Validation, promql, slog.Default())
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	names := known(t)
	entries := headings(read(t, "runbook.md"))
	var alerts []string
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
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
			if missing := unknown(t, rule.Expr, names); missing != nil {
				t.Errorf("%s: the driver has no %v", rule.Alert, missing)
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
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal([]byte(read(t, "dashboard.json")), &board); err != nil {
		t.Fatal(err)
	}
	names, seen := known(t), map[int]bool{}
	for _, panel := range board.Panels {
		if seen[panel.ID] || panel.Title == "" {
			t.Errorf("panel %d (%s) is there twice, or has no title", panel.ID, panel.Title)
		}
		seen[panel.ID] = true
		for _, target := range panel.Targets {
			query := strings.ReplaceAll(target.Expr, "$__rate_interval", "5m")
			if missing := unknown(t, query, names); missing != nil {
				t.Errorf("%s: the driver has no %v", panel.Title, missing)
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
	for _, mark := range []string{"migrate", "back", "check"} {
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
	for _, never := range []string{"storageclass ", "persistentvolume", "pvc ", "pv ", "secret "} {
		if strings.Contains(blocks(page, "migrate"), "delete "+never) {
			t.Errorf("the guide deletes a %s", never)
		}
	}
}
