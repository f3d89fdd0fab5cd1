package deploy

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"
)

// What a case is about happens in the last two of the three hours, or more, that its series have, of which there is a sample a
// minute: in the first everything is new.
const last, judged = 180, 120

// stored is a Prometheus that has these series, each a line in promtool's notation, and the minute of its last sample.
func stored(t *testing.T, lines string) (storage.Queryable, int) {
	t.Helper()
	var all []promql.Series
	end := last
	for line := range strings.Lines(lines) {
		metric, values, err := language.ParseSeriesDesc(strings.TrimSpace(line))
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		one := promql.Series{Metric: metric}
		end = max(end, len(values)-1)
		for at, value := range values {
			if !value.Omitted {
				one.Floats = append(one.Floats, promql.FPoint{T: int64(at) * time.Minute.Milliseconds(), F: value.Value})
			}
		}
		all = append(all, one)
	}
	find := func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		found := listed{at: -1}
		for _, one := range all {
			other := func(matcher *labels.Matcher) bool { return !matcher.Matches(one.Metric.Get(matcher.Name)) }
			if !slices.ContainsFunc(matchers, other) {
				found.series = append(found.series, promql.NewStorageSeries(one))
			}
		}
		return &found
	}
	return &storage.MockQueryable{MockQuerier: &storage.MockQuerier{SelectMockFunction: find}}, end
}

// listed is a list as the query engine takes it.
type listed struct {
	series []storage.Series
	at     int
}

func (l *listed) Next() bool                      { l.at++; return l.at < len(l.series) }
func (l *listed) At() storage.Series              { return l.series[l.at] }
func (*listed) Err() error                        { return nil }
func (*listed) Warnings() annotations.Annotations { return nil }

// fires tells whether an alert would have fired: what it looks for was found at every minute of its `for`.
func fires(t *testing.T, rule rulefmt.Rule, lines string) bool {
	t.Helper()
	engine := promql.NewEngine(promql.EngineOpts{MaxSamples: 1e6, Timeout: time.Minute, Parser: language})
	defer engine.Close()
	series, minute := stored(t, lines)
	end := time.Unix(int64(minute)*60, 0)
	// Without the metric's name, as an alert is.
	expr := "max without () (" + rule.Expr + ")"
	query, err := engine.NewRangeQuery(t.Context(), series, nil, expr, end.Add(-judged*time.Minute), end, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer query.Close()
	found, err := query.Exec(t.Context()).Matrix()
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(found, func(one promql.Series) bool { return longest(one.Floats) >= time.Duration(rule.For) })
}

// longest returns for how long a condition held without a gap.
func longest(points []promql.FPoint) time.Duration {
	var longest, held time.Duration
	for i := range points {
		if i > 0 && points[i].T-points[i-1].T == time.Minute.Milliseconds() {
			held += time.Minute
		} else {
			held = 0
		}
		longest = max(longest, held)
	}
	return longest
}

func TestEveryAlertFiresWhenItShouldAndElseNot(t *testing.T) {
	const (
		controller = `job="cloud-block-csi-controller",instance="a"`
		node       = `job="cloud-block-csi-node",instance="n"`
		creations  = `csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code=`
		second     = `up{job="cloud-block-csi-controller",instance="b"} `
		wanted     = `kube_statefulset_replicas{statefulset="cloud-block-csi-controller",job="kube-state-metrics"} `
		attacher   = `kube_lease_renew_time{lease="external-attacher-leader-block-csi-vultr-com",job="kube-state-metrics"} `
		makes      = `kube_lease_renew_time{lease="block-csi-vultr-com",job="kube-state-metrics"} `
		// A minute of six, as by the kubelet's last back-off
		seldom    = " 1 0x4"
		daemonSet = `kube_daemonset_status_number_unavailable{daemonset="cloud-block-csi-node",job="kube-state-metrics"}`
	)
	cases := map[string]struct{ fires, not map[string]string }{
		"CloudBlockCsiControllerMissing": {
			fires: map[string]string{
				"it was never there":            `up{` + node + `} 1x180`,
				"it doesn't answer":             `up{` + controller + `} 1x80 0x100`,
				"its target went away":          `up{` + controller + `} 1x80 _x100`,
				"it ends soon after each start": `up{` + controller + `} 1x60` + strings.Repeat(seldom, 20),
				"both of two are missing":       "up{" + controller + "} 0x180\nup{job=\"cloud-block-csi-controller\",instance=\"b\"} 0x180",
			},
			not: map[string]string{
				"it runs":             `up{` + controller + `} 1x180`,
				"it is started again": `up{` + controller + `} 1x80 0x5 1x94`,
				// Before, nobody looked.
				"it came up late":          `up{` + controller + `} _x60 0x6 1x114`,
				"it was away, and is back": `up{` + controller + `} 1x80 0x8 1x92`,
				"one of two runs":          "up{" + controller + "} 0x180\nup{job=\"cloud-block-csi-controller\",instance=\"b\"} 1x180",
			},
		},
		"CloudBlockCsiControllerIdle": {
			fires: map[string]string{
				"nobody asks any more": "up{" + controller + "} 1x180\n" +
					`csi_rpc_seconds_count{` + controller + `,rpc="ListVolumes",code="OK"} 0+1x90 90x90`,
				"nobody has ever asked": `up{` + controller + `} 1x180`,
				"another driver's attacher lists": "up{" + controller + "} 1x180\n" +
					`csi_rpc_seconds_count{job="another",rpc="ListVolumes",code="OK"} 0+1x180`,
				"only others are called": "up{" + controller + "} 1x180\n" +
					`csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code="OK"} 0+1x180`,
			},
			not: map[string]string{
				"the attacher lists": "up{" + controller + "} 1x180\n" +
					`csi_rpc_seconds_count{` + controller + `,rpc="ListVolumes",code="OK"} 0+1x180`,
				"one of two works": "up{" + controller + "} 1x180\nup{job=\"cloud-block-csi-controller\",instance=\"b\"} 1x180\n" +
					`csi_rpc_seconds_count{` + controller + `,rpc="ListVolumes",code="OK"} 0+1x180`,
				"it has just been started": "up{" + controller + "} _x172 1x8",
				"only others are there":    `up{` + node + `} 1x180`,
				// That is another alert's.
				"it doesn't answer": `up{` + controller + `} 0x180`,
			},
		},
		"CloudBlockCsiControllerAlone": {
			fires: map[string]string{
				"the second was never there": "up{" + controller + "} 1x180\n" + wanted + "2x180",
				"the second doesn't answer":  "up{" + controller + "} 1x180\n" + second + "1x80 0x100\n" + wanted + "2x180",
				"the second went away":       "up{" + controller + "} 1x180\n" + second + "1x80 _x100\n" + wanted + "2x180",
				"it ends soon after each start": "up{" + controller + "} 1x180\n" + second + "1x60" + strings.Repeat(seldom, 20) + "\n" +
					wanted + "2x180",
			},
			not: map[string]string{
				"both run":                   "up{" + controller + "} 1x180\n" + second + "1x180\n" + wanted + "2x180",
				"the second is moved":        "up{" + controller + "} 1x180\n" + second + "1x80 _x8 1x92\n" + wanted + "2x180",
				"there is to be one":         "up{" + controller + "} 1x180\n" + wanted + "1x180",
				"the only one is updated":    "up{" + controller + "} 1x80 0x8 1x92\n" + wanted + "1x180",
				"nobody knows what is to be": "up{" + controller + "} 1x180",
			},
		},
		"CloudBlockCsiLeaseNotRenewed": {
			fires: map[string]string{
				"it isn't renewed":       "up{" + controller + "} 1x180\n" + attacher + "0+60x80 4800x100",
				"it was deleted":         "up{" + controller + "} 1x1700\n" + attacher + "0+60x1600 _x100\n" + makes + "0+60x1700",
				"the only one that made": "up{" + controller + "} 1x180\n" + makes + "0x180",
			},
			not: map[string]string{
				"kube-state-metrics went away":      "up{" + controller + "} 1x1700\n" + attacher + "0+60x1600 _x100\n" + makes + "0+60x1600 _x100",
				"it is renewed":                     "up{" + controller + "} 1x180\n" + attacher + "0+60x180",
				"another sidecar took it":           "up{" + controller + "} 1x180\n" + attacher + "0+60x80 4800x5 5160+60x94",
				"all was taken away":                "up{" + controller + "} 1x1600 _x100\n" + attacher + "0+60x1600 _x100",
				"the controller is what is missing": "up{" + controller + "} 1x80 0x100\n" + attacher + "0+60x80 4800x100",
				"it is another driver's":            "up{" + controller + "} 1x180\n" + strings.ReplaceAll(attacher, "vultr", "other") + "0x180",
			},
		},
		"CloudBlockCsiNodeNotReady": {
			fires: map[string]string{"one is Pending": daemonSet + ` 0x80 1x100`},
			not: map[string]string{
				"all are ready":  daemonSet + ` 0x180`,
				"one is updated": daemonSet + ` 0x80 1x5 0x95`,
				"it is another's": `kube_daemonset_status_number_unavailable{daemonset="kube-proxy",job="kube-state-metrics"}` +
					` 1x180`,
			},
		},
		"CloudBlockCsiNodeMissing": {
			fires: map[string]string{
				"it ends soon after each start": `up{` + node + `} 1x60` + strings.Repeat(seldom, 20),
				"one of two doesn't answer":     "up{" + node + "} 0x180\nup{job=\"cloud-block-csi-node\",instance=\"m\"} 1x180",
			},
			not: map[string]string{
				"it answers":          `up{` + node + `} 1x180`,
				"it is started again": `up{` + node + `} 1x80 0x5 1x94`,
				"its node went away":  `up{` + node + `} 1x80 0x7 stale _x92`,
				"it came up late":     `up{` + node + `} _x60 0x6 1x114`,
				"it is another's":     `up{job="kubelet",instance="n"} 0x180`,
			},
		},
		"CloudBlockCsiCloudUnreachable": {
			fires: map[string]string{"no request is answered": `csi_cloud_reachable{` + controller + `} 1x80 0x100`},
			not: map[string]string{
				"each is answered": `csi_cloud_reachable{` + controller + `} 1x180`,
				"a few were not":   `csi_cloud_reachable{` + controller + `} 1x80 0x3 1x97`,
				// It asks the cloud for nothing, but has the metric.
				"it is a node's": `csi_cloud_reachable{` + node + `} 0x180`,
			},
		},
		"CloudBlockCsiTokenRefused": {
			fires: map[string]string{
				"it is revoked, and claims are tried at the sidecars' last back-off": `csi_cloud_seconds_count{` + controller +
					`,operation="create_block",outcome="unauthorized"}` + every(1),
				"it is revoked": `csi_cloud_seconds_count{` + controller + `,operation="list_blocks",outcome="unauthorized"} _x80 1+1x100`,
			},
			not: map[string]string{
				"it is taken":                `csi_cloud_seconds_count{` + controller + `,operation="list_blocks",outcome="ok"} 0+1x180`,
				"it was renewed in a minute": `csi_cloud_seconds_count{` + controller + `,operation="list_blocks",outcome="unauthorized"} 0x80 1 2 2x98`,
				"it may not use shared ones": `csi_cloud_seconds_count{` + controller + `,operation="list_vfs",outcome="unauthorized"} 0+1x180`,
				"it was once":                `csi_cloud_seconds_count{` + controller + `,operation="list_blocks",outcome="unauthorized"} 7x180`,
			},
		},
		"CloudBlockCsiRateLimited": {
			fires: map[string]string{
				"one a minute": `csi_cloud_seconds_count{` + controller + `,operation="list_blocks",outcome="rate_limited"} 0+1x180`,
			},
			not: map[string]string{
				"one in ten minutes":   `csi_cloud_seconds_count{` + controller + `,operation="list_blocks",outcome="rate_limited"}` + every(10),
				"many of another kind": `csi_cloud_seconds_count{` + controller + `,operation="list_blocks",outcome="busy"} 0+9x180`,
			},
		},
		"CloudBlockCsiChangeStuck": {
			fires: map[string]string{"an attach": `csi_changes_stuck_oldest_seconds{` + controller + `,change="attach"} 0x80 0+60x100`},
			not:   map[string]string{"it came about in time": `csi_changes_stuck_oldest_seconds{` + controller + `,change="attach"} 0x80 0+60x12 0x87`},
		},
		"CloudBlockCsiQuotaExhausted": {
			fires: map[string]string{
				// The sidecars' last back-off
				"a claim every minute": `csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code="RESOURCE_EXHAUSTED"}` +
					every(1),
			},
			not: map[string]string{
				"a call of another kind": `csi_rpc_seconds_count{` + controller + `,rpc="ControllerPublishVolume",code="RESOURCE_EXHAUSTED"}` +
					every(5),
				"it fails for another reason": `csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code="UNAVAILABLE"}` + every(5),
				"two tries, then the quota was raised": `csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code="RESOURCE_EXHAUSTED"}` +
					` _x80 1 2 2x98`,
			},
		},
		"CloudBlockCsiDiskRefused": {
			fires: map[string]string{"the kubelet's last back-off": `csi_disks_refused_total{` + node + `,reason="not_blank"}` + every(2)},
			not: map[string]string{
				"none was":      `csi_disks_refused_total{` + node + `,reason="not_blank"} 0x180`,
				"it passed":     `csi_disks_refused_total{` + node + `,reason="swapped"} 0x80 1 1x99`,
				"it is all old": `csi_disks_refused_total{` + node + `,reason="swapped"} 9x180`,
			},
		},
		"CloudBlockCsiToolKilled": {
			fires: map[string]string{
				"for the first time": `csi_tool_seconds_count{` + node + `,tool="e2fsck",outcome="signal"} _x150 1x30`,
				"once more":          `csi_tool_seconds_count{` + node + `,tool="e2fsck",outcome="not_run"} 4x150 5x30`,
				"and the driver too": `csi_tool_seconds_count{` + node + `,tool="e2fsck",outcome="signal"} 3x150 _x5 1x25`,
			},
			not: map[string]string{
				"hours ago":          `csi_tool_seconds_count{` + node + `,tool="e2fsck",outcome="signal"} 4x180`,
				"it ended by itself": `csi_tool_seconds_count{` + node + `,tool="e2fsck",outcome="nonzero"} 0+1x180`,
			},
		},
		"CloudBlockCsiInternalErrors": {
			fires: map[string]string{
				"one volume at the sidecars' last back-off": `csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code="INTERNAL"}` +
					every(5),
			},
			not: map[string]string{
				"three, and no more": `csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code="INTERNAL"} 0x80 1 2 3 3x97`,
				"a code with a name": `csi_rpc_seconds_count{` + controller + `,rpc="CreateVolume",code="UNAVAILABLE"} 0+1x180`,
			},
		},
		"CloudBlockCsiEveryCallFails": {
			fires: map[string]string{
				"one volume at the sidecars' last back-off": creations + `"UNAVAILABLE"}` + every(5),
				"in two ways": creations + `"UNAVAILABLE"}` + every(10) + "\n" + creations + `"NOT_FOUND"}` + every(10),
				"others end well": creations + `"UNAVAILABLE"}` + every(5) + "\n" +
					strings.ReplaceAll(creations, "CreateVolume", "DeleteVolume") + `"OK"} 0+1x180`,
				"they ended well long ago": creations + `"UNAVAILABLE"}` + every(5) + "\n" + creations + `"OK"} 0+1x60 61x120`,
			},
			not: map[string]string{
				"some end well":           creations + `"UNAVAILABLE"}` + every(5) + "\n" + creations + `"OK"}` + every(25),
				"they do on another node": stages("n", "UNAVAILABLE", every(5)) + "\n" + stages("m", "OK", every(10)),
				// After fifteen minutes, with a series that stays at one
				"the first has ended well":    creations + `"UNAVAILABLE"} _x70 1 2 3 4 5 6 6x103` + "\n" + creations + `"OK"} _x80 1x100`,
				"a call is under way":         creations + `"ABORTED"} 0+1x180`,
				"one failed and was given up": creations + `"UNAVAILABLE"} _x80 1 2 2x98`,
			},
		},
		"CloudBlockCsiTwins": {
			fires: map[string]string{
				"one was seen":                  `csi_twins_total{kind="volume"} 0x90 1x90`,
				"one was seen before the first": `csi_twins_total{kind="volume"} _x90 1x90`,
			},
			not: map[string]string{
				"there never was one": `csi_twins_total{kind="volume"} 0x180`,
				"it was seen before":  `csi_twins_total{kind="volume"} 1x180`,
			},
		},
		"CloudBlockCsiSlowAttach": {
			fires: map[string]string{"all take two minutes": attaches("120")},
			not: map[string]string{
				"all take half of one": attaches("30"),
				"another call is slow": strings.ReplaceAll(attaches("120"), "ControllerPublishVolume", "CreateVolume"),
				"the slow ones failed": strings.ReplaceAll(attaches("120"), `"OK"`, `"UNAVAILABLE"`),
			},
		},
		"CloudBlockCsiWaitingForItsTurn": {
			fires: map[string]string{"attaching waits": waits("attach", "30")},
			not: map[string]string{
				"it waits a moment":     waits("attach", "0.5"),
				"only listing it waits": waits("list", "30"),
			},
		},
	}
	for _, rule := range rules(t) {
		one := cases[rule.Alert]
		delete(cases, rule.Alert)
		if one.fires == nil || one.not == nil {
			t.Errorf("%s: no series on which it fires, or none on which it does not", rule.Alert)
		}
		for _, wanted := range []bool{true, false} {
			sets := one.not
			if wanted {
				sets = one.fires
			}
			for name, series := range sets {
				if fires(t, rule, series) != wanted {
					t.Errorf("%s, when %s: it should fire: %v", rule.Alert, name, wanted)
				}
			}
		}
	}
	for alert := range cases {
		t.Errorf("there is no alert %s", alert)
	}
}

// every returns the values of a counter that appears after seventy minutes and goes up by one every so many.
func every(step int) string {
	values := " _x70"
	for at, count := 70, 1; at < last; at, count = at+step, count+1 {
		values += strings.Repeat(" "+strconv.Itoa(count), step)
	}
	return values
}

// stages are calls of one node.
func stages(node, code, values string) string {
	return `csi_rpc_seconds_count{job="cloud-block-csi-node",instance="` + node + `",rpc="NodeStageVolume",code="` + code + `"}` + values
}

// attaches are some that all took so long: one a minute, in all buckets from there.
func attaches(seconds string) string {
	return buckets(`csi_rpc_seconds_bucket{job="cloud-block-csi-controller",rpc="ControllerPublishVolume",code="OK",`, seconds)
}

// waits are requests that all waited so long.
func waits(priority, seconds string) string {
	return buckets(`csi_cloud_wait_seconds_bucket{job="cloud-block-csi-controller",priority="`+priority+`",`, seconds)
}

func buckets(series, seconds string) string {
	all := []string{"0.005", "0.02", "0.1", "0.5", "1", "2", "5", "10", "30", "60", "120", "300", "+Inf"}
	var lines []string
	for at, le := range all {
		step := "0"
		if at >= slices.Index(all, seconds) {
			step = "1"
		}
		lines = append(lines, series+`le="`+le+`"} 0+`+step+`x180`)
	}
	return strings.Join(lines, "\n")
}
