package contract

import (
	"context"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/vultr/govultr/v3"
	"github.com/vultr/metadata"
)

// unlocked waits until an instance takes the next operation.
func unlocked(t *testing.T, client *govultr.Client, id string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		instance, _, err := client.Instance.Get(context.Background(), id)
		ok(t, err)
		if instance.ServerStatus == "ok" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never unlocked: %+v", instance)
		}
	}
}

func TestInstancesAreFoundByIdLabelAndRegion(t *testing.T) {
	sim := start(t)
	client, ctx, one := sim.client(t, sim.Token), context.Background(), sim.instance(t, "one")

	got, _, err := client.Instance.Get(ctx, one.ID)
	ok(t, err)
	if got.Label != "one" || got.Region != "ewr" || got.Status != "active" || got.PowerStatus != "running" {
		t.Errorf("%+v", got)
	}
	_, response, err := client.Instance.Get(ctx, "nobody")
	refused(t, err, "instance not found")
	if response.StatusCode != http.StatusNotFound {
		t.Error(response.Status)
	}

	for _, c := range []struct {
		options govultr.ListOptions
		count   int
	}{
		{govultr.ListOptions{}, 3},
		{govultr.ListOptions{Label: "two"}, 1},
		{govultr.ListOptions{Region: "ewr"}, 2},
		{govultr.ListOptions{Label: "nobody"}, 0},
	} {
		instances, meta, _, err := client.Instance.List(ctx, &c.options)
		ok(t, err)
		if len(instances) != c.count || meta.Total != c.count {
			t.Errorf("%+v: %d of %d, want %d", c.options, len(instances), meta.Total, c.count)
		}
	}
	_, _, err = client.BareMetalServer.Get(ctx, one.ID)
	refused(t, err, "Not found.")
}

func TestRegionsArePagedAndPublic(t *testing.T) {
	sim := start(t)
	client := sim.client(t, "none")
	var regions []govultr.Region
	for options := (&govultr.ListOptions{PerPage: 10}); ; {
		page, meta, _, err := client.Region.List(context.Background(), options)
		ok(t, err)
		regions = append(regions, page...)
		if options.Cursor = meta.Links.Next; options.Cursor == "" {
			break
		}
	}
	ewr := slices.IndexFunc(regions, func(r govultr.Region) bool { return r.ID == "ewr" })
	if len(regions) != 33 || !slices.Contains(regions[ewr].Options, "block_storage_high_perf") {
		t.Errorf("%d regions, ewr at %d", len(regions), ewr)
	}
}

// Vultr's driver lists both kinds of storage for every call and reads the file systems' meta unchecked.
func TestTheListOfFileSystemsIsEmptyAndHasMeta(t *testing.T) {
	sim := start(t)
	client, ctx := sim.client(t, sim.Token), context.Background()
	list, meta, _, err := client.VirtualFileSystemStorage.List(ctx, nil)
	ok(t, err)
	if len(list) != 0 || meta.Total != 0 || meta.Links.Next != "" {
		t.Errorf("%+v %+v", list, meta)
	}
	_, _, err = client.VirtualFileSystemStorage.Get(ctx, "nobody")
	refused(t, err, "Subscription ID Not Found.")
}

func TestTheAccountDecodes(t *testing.T) {
	sim := start(t)
	account, _, err := sim.client(t, sim.Token).Account.Get(context.Background())
	ok(t, err)
	if account.Email == "" || len(account.ACL) == 0 {
		t.Errorf("%+v", account)
	}
}

// Forty calls at once are ten too many. The client's own pauses are shorter than the second for which the limit
// lasts, so each refused call succeeding at its second try shows that it waited as Retry-After said.
func TestTheClientObeysRetryAfter(t *testing.T) {
	sim := start(t, "requests_per_second=30")
	client := sim.client(t, sim.Token)
	const calls = 40
	var group sync.WaitGroup
	began := time.Now()
	for range calls {
		group.Go(func() {
			if _, _, err := client.Account.Get(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	var stats struct {
		Requests    map[string]map[string]int
		RateLimited int `json:"rate_limited"`
	}
	sim.control(t, http.MethodGet, "/stats", nil, &stats)
	account := stats.Requests["get_account"]
	if account["200"] != calls || account["429"] != calls-30 || stats.RateLimited != calls-30 {
		t.Errorf("%+v", stats)
	}
	if took := time.Since(began); took < time.Second {
		t.Errorf("it waited only %v", took)
	}
}

func TestTheMetadataClientReadsIdAndRegion(t *testing.T) {
	sim := start(t)
	for _, instance := range sim.Instances {
		client := metadata.NewClient()
		ok(t, client.SetBaseURL(instance.MetadataURL))
		told, err := client.Metadata()
		ok(t, err)
		region := map[string]string{"ewr": "EWR", "ams": "AMS"}[instance.Region]
		if told.InstanceV2ID != instance.ID || told.Region.RegionCode != region || told.Hostname != instance.Label {
			t.Errorf("%+v", told)
		}
	}
}
