package contract

import (
	"context"
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/vultr/govultr/v3"
)

// settled gets a snapshot until it is pending no more.
func settled(t *testing.T, client *govultr.Client, id string) *govultr.BlockStorageSnapshot {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		snapshot, _, err := client.BlockStorage.GetSnapshot(context.Background(), id)
		ok(t, err)
		if snapshot.State != "PENDING" {
			return snapshot
		}
		if time.Now().After(deadline) {
			t.Fatalf("still pending: %+v", snapshot)
		}
	}
}

func TestASnapshotLivesFromCreateToDelete(t *testing.T) {
	sim := start(t, "snapshot_ms=100")
	client, ctx := sim.client(t, sim.Token), context.Background()
	block := create(t, client, "a")

	made, response, err := client.BlockStorage.CreateSnapshot(ctx, &govultr.BlockStorageSnapshotReq{
		BlockID: block.ID, Description: "s",
	})
	ok(t, err)
	if response.StatusCode != http.StatusCreated || made.State != "PENDING" || made.BlockID != block.ID {
		t.Errorf("%s %+v", response.Status, made)
	}
	snapshot := settled(t, client, made.ID)
	if snapshot.State != "COMPLETE" || snapshot.Description != "s" || snapshot.Size != 45<<30 {
		t.Errorf("%+v", snapshot)
	}
	for _, date := range []string{snapshot.DateCreated, snapshot.DateUpdated} {
		_, err := time.Parse(time.DateTime, date)
		ok(t, err)
	}

	ok(t, client.BlockStorage.UpdateSnapshot(ctx, made.ID, &govultr.BlockStorageSnapshotReq{Description: "t"}))
	snapshot, _, err = client.BlockStorage.GetSnapshot(ctx, made.ID)
	ok(t, err)
	if snapshot.Description != "t" || snapshot.BlockID != block.ID {
		t.Errorf("%+v", snapshot)
	}

	ok(t, client.BlockStorage.Delete(ctx, block.ID))
	restored, _, err := client.BlockStorage.Create(ctx, &govultr.BlockStorageCreate{
		Region: "ewr", SizeGB: 50, Label: "b", BlockType: "storage_opt", SnapshotID: made.ID,
	})
	ok(t, err)
	if restored.SnapshotID != made.ID || restored.SizeGB != 50 {
		t.Errorf("%+v", restored)
	}
	ok(t, client.BlockStorage.DeleteSnapshot(ctx, made.ID))
	_, _, err = client.BlockStorage.GetSnapshot(ctx, made.ID)
	refused(t, err, "Invalid block storage snapshot ID")
	ok(t, client.BlockStorage.Delete(ctx, restored.ID))
	sim.clean(t)
}

func TestPagingShowsEverySnapshotOnce(t *testing.T) {
	sim := start(t)
	client, ctx := sim.client(t, sim.Token), context.Background()
	block := create(t, client, "a")
	const count = 7
	for number := range count {
		_, _, err := client.BlockStorage.CreateSnapshot(ctx, &govultr.BlockStorageSnapshotReq{
			BlockID: block.ID, Description: fmt.Sprint(number),
		})
		ok(t, err)
	}
	seen, pages := map[string]bool{}, 0
	for options := (&govultr.ListOptions{PerPage: 3}); ; {
		snapshots, meta, _, err := client.BlockStorage.ListSnapshots(ctx, options)
		ok(t, err)
		for _, snapshot := range snapshots {
			seen[snapshot.Description] = true
		}
		pages++
		if meta.Total != count {
			t.Errorf("total %d, want %d", meta.Total, count)
		}
		if options.Cursor = meta.Links.Next; options.Cursor == "" {
			break
		}
	}
	if len(seen) != count || pages != 3 {
		t.Errorf("saw %d of %d on %d pages", len(seen), count, pages)
	}
}

// The client reads the bare form only, and takes a wrapped answer for a snapshot without an id.
func TestTheClientTakesAWrappedSnapshotForAnEmptyOne(t *testing.T) {
	for _, answer := range []string{"wrapped", "listed"} {
		sim := start(t, "snapshot_answer="+answer)
		client, ctx := sim.client(t, sim.Token), context.Background()
		block := create(t, client, "a")
		made, _, err := client.BlockStorage.CreateSnapshot(ctx, &govultr.BlockStorageSnapshotReq{
			BlockID: block.ID, Description: "s",
		})
		ok(t, err)
		snapshots, _, _, err := client.BlockStorage.ListSnapshots(ctx, nil)
		ok(t, err)
		if made.ID != "" || len(snapshots) != 1 || snapshots[0].ID == "" {
			t.Errorf("%s: %+v %+v", answer, made, snapshots)
		}
	}
}

func TestASnapshotRequestThatCannotBeIsRefused(t *testing.T) {
	sim := start(t)
	client, ctx := sim.client(t, sim.Token), context.Background()
	block := create(t, client, "a")
	_, _, err := client.BlockStorage.CreateSnapshot(ctx, &govultr.BlockStorageSnapshotReq{BlockID: "nobody"})
	refused(t, err, "Invalid block storage ID")
	refused(t, client.BlockStorage.DeleteSnapshot(ctx, "nobody"), "Invalid block storage snapshot ID")
	restore := &govultr.BlockStorageCreate{Region: "ewr", SizeGB: 45, BlockType: "storage_opt", SnapshotID: "nobody"}
	_, _, err = client.BlockStorage.Create(ctx, restore)
	refused(t, err, "Invalid snapshot ID")

	sim.control(t, http.MethodPatch, "/behaviour", map[string]any{"snapshot_fails": true}, nil)
	made, _, err := client.BlockStorage.CreateSnapshot(ctx, &govultr.BlockStorageSnapshotReq{BlockID: block.ID})
	ok(t, err)
	if snapshot := settled(t, client, made.ID); snapshot.State != "FAILED" {
		t.Errorf("%+v", snapshot)
	}
	restore.SnapshotID = made.ID
	_, _, err = client.BlockStorage.Create(ctx, restore)
	refused(t, err, "not complete")
}
