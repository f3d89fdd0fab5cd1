package contract

import (
	"context"
	"net/http"
	"testing"

	"github.com/vultr/govultr/v3"
)

func create(t *testing.T, client *govultr.Client, label string) *govultr.BlockStorage {
	t.Helper()
	block, _, err := client.BlockStorage.Create(context.Background(), &govultr.BlockStorageCreate{
		Region: "EWR", SizeGB: 45, Label: label, BlockType: "storage_opt",
	})
	ok(t, err)
	return until(t, client, block.ID, func(b *govultr.BlockStorage) bool { return b.Status == "active" })
}

func attach(t *testing.T, client *govultr.Client, id, instance string) {
	t.Helper()
	ctx := context.Background()
	ok(t, client.BlockStorage.Attach(ctx, id, &govultr.BlockStorageAttach{
		InstanceID: instance, Live: govultr.BoolToBoolPtr(true),
	}))
	until(t, client, id, func(b *govultr.BlockStorage) bool { return b.AttachedToInstance == instance })
}

func TestAVolumeLivesFromCreateToDelete(t *testing.T) {
	sim := start(t, "create_ms=100", "attach_ms=100", "detach_ms=100")
	client, ctx := sim.client(t, sim.Token), context.Background()
	one := sim.instance(t, "one")

	made, response, err := client.BlockStorage.Create(ctx, &govultr.BlockStorageCreate{
		Region: "ewr", SizeGB: 45, Label: "pvc-1", BlockType: "storage_opt",
	})
	ok(t, err)
	if response.StatusCode != http.StatusAccepted || made.Status != "pending" {
		t.Errorf("%s %+v", response.Status, made)
	}
	block := until(t, client, made.ID, func(b *govultr.BlockStorage) bool { return b.Status == "active" })
	if block.Cost != 1.125 || block.BlockType != "storage_opt" || len(block.MountID) != 18 || block.DateCreated == "" {
		t.Errorf("%+v", block)
	}

	attach(t, client, made.ID, one.ID)
	block, _, err = client.BlockStorage.Get(ctx, made.ID)
	ok(t, err)
	if block.AttachedToInstanceLabel != "one" || block.AttachedToInstanceIP == "" {
		t.Errorf("%+v", block)
	}

	ok(t, client.BlockStorage.Update(ctx, made.ID, &govultr.BlockStorageUpdate{Label: "pvc-2", SizeGB: 50}))
	block, _, err = client.BlockStorage.Get(ctx, made.ID)
	ok(t, err)
	if block.Label != "pvc-2" || block.SizeGB != 50 {
		t.Errorf("%+v", block)
	}

	unlocked(t, client, one.ID)
	ok(t, client.BlockStorage.Detach(ctx, made.ID, &govultr.BlockStorageDetach{Live: govultr.BoolToBoolPtr(true)}))
	until(t, client, made.ID, func(b *govultr.BlockStorage) bool { return b.AttachedToInstance == "" })
	unlocked(t, client, one.ID)
	ok(t, client.BlockStorage.Delete(ctx, made.ID))
	_, _, err = client.BlockStorage.Get(ctx, made.ID)
	refused(t, err, "Invalid block storage ID")

	sim.clean(t)
	var stats struct{ Reboots map[string]int }
	sim.control(t, http.MethodGet, "/stats", nil, &stats)
	if len(stats.Reboots) != 0 {
		t.Errorf("restarted: %v", stats.Reboots)
	}
}

func TestPagingShowsEveryVolumeOnce(t *testing.T) {
	for _, count := range []int{0, 1, 500, 501, 1203} {
		sim := start(t)
		client := sim.client(t, sim.Token)
		sim.control(t, http.MethodPost, "/fillers", map[string]any{"count": count, "region": "ewr"}, nil)
		seen, options := map[string]bool{}, &govultr.ListOptions{PerPage: 500}
		for pages := 1; ; pages++ {
			blocks, meta, _, err := client.BlockStorage.List(context.Background(), options)
			ok(t, err)
			for _, block := range blocks {
				seen[block.ID] = true
			}
			// The official driver reads both pointers unchecked.
			if meta.Total != count {
				t.Errorf("total %d, want %d", meta.Total, count)
			}
			options.Cursor = meta.Links.Next
			if options.Cursor == "" {
				if wanted := max(1, (count+499)/500); pages != wanted {
					t.Errorf("%d pages, want %d", pages, wanted)
				}
				break
			}
		}
		if len(seen) != count {
			t.Errorf("saw %d volumes of %d", len(seen), count)
		}
	}
}

func TestARefusalIsTheTextThatOfficialToolsLookFor(t *testing.T) {
	sim := start(t)
	client, ctx := sim.client(t, sim.Token), context.Background()
	live := govultr.BoolToBoolPtr(true)
	one, two := sim.instance(t, "one"), sim.instance(t, "two")
	block := create(t, client, "a")

	refused(t, client.BlockStorage.Delete(ctx, "nobody"), "Invalid block storage ID")
	refused(t, client.BlockStorage.Detach(ctx, block.ID, &govultr.BlockStorageDetach{Live: live}),
		"Block storage volume is not currently attached to a server")
	refused(t, client.BlockStorage.Update(ctx, block.ID, &govultr.BlockStorageUpdate{SizeGB: 45}), "Nothing to change")
	_, _, err := client.BlockStorage.Create(ctx, &govultr.BlockStorageCreate{
		Region: "ewr", SizeGB: 8, BlockType: "high_perf",
	})
	refused(t, err, "Invalid size (8GB) - Must be between 10GB and 10000GB.")
	_, _, err = client.BlockStorage.Create(ctx, &govultr.BlockStorageCreate{
		Region: "fra", SizeGB: 10, BlockType: "high_perf",
	})
	refused(t, err, "unable to find a block storage cluster in that location")

	attach(t, client, block.ID, one.ID)
	for _, instance := range []string{one.ID, two.ID} {
		err := client.BlockStorage.Attach(ctx, block.ID, &govultr.BlockStorageAttach{InstanceID: instance, Live: live})
		refused(t, err, "Block storage volume is already attached to a server")
	}
	refused(t, client.BlockStorage.Delete(ctx, block.ID), "attached")
}

func TestAWrongTokenIsRefused(t *testing.T) {
	sim := start(t)
	client := sim.client(t, "wrong")
	_, _, _, err := client.BlockStorage.List(context.Background(), nil)
	refused(t, err, "Invalid API token.")
}

func TestALockedInstanceTakesNoSecondVolume(t *testing.T) {
	sim := start(t, "attach_ms=3600000")
	client, ctx, one := sim.client(t, sim.Token), context.Background(), sim.instance(t, "one")
	a, b := create(t, client, "a"), create(t, client, "b")
	request := &govultr.BlockStorageAttach{InstanceID: one.ID, Live: govultr.BoolToBoolPtr(true)}
	ok(t, client.BlockStorage.Attach(ctx, a.ID, request))
	refused(t, client.BlockStorage.Attach(ctx, b.ID, request), "Server is currently locked")
}

// The client repeats a POST that was answered by a 5xx: a create whose answer is lost makes two volumes.
func TestACreateWhoseAnswerIsLostIsDoubledByTheClient(t *testing.T) {
	sim := start(t)
	client := sim.client(t, sim.Token)
	sim.control(t, http.MethodPost, "/faults", map[string]any{
		"operation": "create_block",
		"action":    map[string]any{"answer": map[string]any{"when": "after", "status": 500, "body": "{}"}},
		"times":     1,
	}, nil)
	create(t, client, "twice")
	blocks, _, _, err := client.BlockStorage.List(context.Background(), nil)
	ok(t, err)
	if len(blocks) != 2 {
		t.Errorf("%d volumes, want 2", len(blocks))
	}
}

func TestTheClientRecoversFromACutConnection(t *testing.T) {
	sim := start(t)
	client := sim.client(t, sim.Token)
	block := create(t, client, "a")
	for _, when := range []string{"before", "after"} {
		sim.control(t, http.MethodPost, "/faults", map[string]any{
			"operation": "get_block", "volume": "a", "times": 1,
			"action": map[string]any{"cut": map[string]any{"when": when}},
		}, nil)
		_, _, err := client.BlockStorage.Get(context.Background(), block.ID)
		ok(t, err)
	}
	var stats struct{ Requests map[string]map[string]int }
	sim.control(t, http.MethodGet, "/stats", nil, &stats)
	if cuts := stats.Requests["get_block"]["0"]; cuts != 2 {
		t.Errorf("%d cuts, want 2", cuts)
	}
}
