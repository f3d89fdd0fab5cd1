package deploy

import (
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

var language = parser.NewParser(parser.Options{})

// rules returns the alerts.
func rules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	file, errs := rulefmt.Parse([]byte(read(t, "alerts.yaml")), false, model.UTF8Validation, language, slog.Default())
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var all []rulefmt.Rule
	for _, group := range file.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

func expression(t *testing.T, query string) parser.Expr {
	t.Helper()
	expression, err := language.ParseExpr(query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return expression
}

// mentioned returns what the pattern's group finds in a text.
func mentioned(text, pattern string) []string {
	var all []string
	for _, found := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, found[1])
	}
	return all
}

// series are the metrics that queries may ask for, each with its labels, each with its values; none if they are not a closed set.
type series map[string]map[string][]string

// What gRPC's codes are called in CSI
var codes = []string{"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
	"PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL",
	"UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"}

// known returns the driver's metrics as metrics.md lists them, whose table is held against the code by a test of the driver's,
// and what alerts ask of Prometheus itself and of kube-state-metrics.
func known(t *testing.T) series {
	t.Helper()
	page := read(t, "metrics.md")
	described := regexp.MustCompile("`(\\w+)`(?: of (`csi_\\w+`(?:, `csi_\\w+`)*))?")
	// By label, and by "label of metric"
	values, used := map[string][]string{}, map[string]bool{}
	for _, item := range strings.Split(strings.ReplaceAll(page, "\n  ", " "), "\n") {
		item, is := strings.CutPrefix(item, "- ")
		if !is {
			continue
		}
		head, tail, _ := strings.Cut(item, ": ")
		listed := mentioned(tail, "`([^`]+)`")
		if strings.Contains(tail, "such as") {
			listed = nil
		}
		for _, label := range described.FindAllStringSubmatch(head, -1) {
			if label[2] == "" {
				values[label[1]] = listed
			}
			for _, metric := range mentioned(label[2], "`(\\w+)`") {
				values[label[1]+" of "+metric] = listed
			}
		}
	}
	proto, err := os.ReadFile("../../proto/csi.proto")
	if err != nil {
		t.Fatal(err)
	}
	values["rpc"], values["code"] = mentioned(string(proto), `(?m)^  rpc (\w+)\(`), codes

	rendered := render(t)
	var jobs, sets, controllers, leases []string
	for _, workload := range append(rendered.of("StatefulSet"), rendered.of("DaemonSet")...) {
		jobs = append(jobs, dig[string](workload, "spec", "template", "metadata", "labels", "app"))
	}
	for kind, names := range map[string]*[]string{"DaemonSet": &sets, "StatefulSet": &controllers, "Lease": &leases} {
		for _, one := range rendered.of(kind) {
			*names = append(*names, one.name())
		}
	}
	// What Prometheus puts on every series; the chart's PodMonitor names the job by the pod's label.
	scraped := func(labels map[string][]string) map[string][]string {
		for _, label := range []string{"instance", "namespace", "pod", "node", "container"} {
			labels[label] = nil
		}
		labels["job"] = jobs
		return labels
	}
	all := series{"up": scraped(map[string][]string{}),
		"kube_daemonset_status_number_unavailable": scraped(map[string][]string{"daemonset": sets}),
		"kube_statefulset_replicas":                scraped(map[string][]string{"statefulset": controllers}),
		"kube_lease_renew_time":                    scraped(map[string][]string{"lease": leases})}
	for _, row := range regexp.MustCompile("(?m)^\\| `(csi_\\w+)` \\| (\\w+) \\| ([^|]*)\\|").FindAllStringSubmatch(page, -1) {
		name, kind, own := row[1], row[2], map[string][]string{}
		for _, label := range mentioned(row[3], "`(\\w+)`") {
			of, closed := values[label+" of "+name]
			general, everywhere := values[label]
			if !closed && !everywhere {
				t.Errorf("metrics.md does not say what %s of %s can be", label, name)
			}
			used[label], used[label+" of "+name] = true, true
			own[label] = append(of, general...)
		}
		if kind != "histogram" {
			all[name] = scraped(own)
			continue
		}
		all[name+"_sum"], all[name+"_count"] = scraped(own), own
		all[name+"_bucket"] = map[string][]string{"le": nil}
		for label, values := range own {
			all[name+"_bucket"][label] = values
		}
	}
	for label := range values {
		if !used[label] {
			t.Errorf("metrics.md describes %s, which is not in its table", label)
		}
	}
	if all["csi_rpc_seconds_count"] == nil || all["csi_changes_stuck"] == nil || len(values["rpc"]) < 20 {
		t.Fatalf("the tables are not found: %v, %v", all, values)
	}
	return all
}

// missing returns what a query asks for and never finds: metrics, labels of them, and values of those.
func (all series) missing(query parser.Expr) []string {
	var missing []string
	lack := func(query parser.Expr, labels ...string) {
		for _, label := range labels {
			if !slices.Contains(all.labels(query), label) {
				missing = append(missing, fmt.Sprintf("label %s in %s", label, query))
			}
		}
	}
	parser.Inspect(query, func(node parser.Node, _ []parser.Node) error {
		switch node := node.(type) {
		case *parser.VectorSelector:
			own, is := all[node.Name]
			if !is {
				missing = append(missing, "metric "+node.Name)
				return nil
			}
			for _, matcher := range node.LabelMatchers {
				if matcher.Name == labels.MetricName {
					continue
				}
				values, is := own[matcher.Name]
				if !is {
					missing = append(missing, fmt.Sprintf("label %s of %s", matcher.Name, node.Name))
				}
				for _, value := range alternatives(matcher) {
					one := regexp.MustCompile("^(?:" + value + ")$")
					if values != nil && !slices.ContainsFunc(values, one.MatchString) {
						missing = append(missing, fmt.Sprintf("%s=%s of %s", matcher.Name, value, node.Name))
					}
				}
			}
		case *parser.AggregateExpr:
			lack(node.Expr, node.Grouping...)
		case *parser.BinaryExpr:
			if node.VectorMatching != nil {
				lack(node.LHS, node.VectorMatching.MatchingLabels...)
				lack(node.RHS, node.VectorMatching.MatchingLabels...)
			}
		}
		return nil
	})
	return missing
}

// alternatives returns the values that a matcher names, as patterns.
func alternatives(matcher *labels.Matcher) []string {
	if matcher.Type == labels.MatchEqual || matcher.Type == labels.MatchNotEqual {
		return []string{regexp.QuoteMeta(matcher.Value)}
	}
	return strings.Split(matcher.Value, "|")
}

// labels returns the labels that what a query finds can have.
func (all series) labels(query parser.Expr) []string {
	var found []string
	switch query := query.(type) {
	case *parser.VectorSelector:
		for label := range all[query.Name] {
			found = append(found, label)
		}
		return found
	case *parser.AggregateExpr:
		if !query.Without {
			return query.Grouping
		}
		return slices.DeleteFunc(all.labels(query.Expr), func(label string) bool { return slices.Contains(query.Grouping, label) })
	}
	for child := range parser.ChildrenIter(query) {
		found = append(found, all.labels(child.(parser.Expr))...)
	}
	return found
}
