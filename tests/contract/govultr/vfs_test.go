package contract

import (
	"context"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/vultr/govultr/v3"
)

// share makes a file system and waits until it may be used.
func share(t *testing.T, client *govultr.Client, label string) *govultr.VirtualFileSystemStorage {
	t.Helper()
	vfs, response, err := client.VirtualFileSystemStorage.Create(context.Background(),
		&govultr.VirtualFileSystemStorageReq{
			Region: "EWR", Label: label, Tags: []string{"x", "y"}, DiskType: "nvme",
			StorageSize: govultr.VirtualFileSystemStorageSize{SizeGB: 20},
		})
	ok(t, err)
	if response.StatusCode != http.StatusCreated {
		t.Error(response.Status)
	}
	for deadline := time.Now().Add(patience); vfs.Status != "active"; {
		vfs, _, err = client.VirtualFileSystemStorage.Get(context.Background(), vfs.ID)
		ok(t, err)
		if time.Now().After(deadline) {
			t.Fatalf("never active: %+v", vfs)
		}
	}
	return vfs
}

// attachVFS attaches a file system and waits for the effect.
func attachVFS(t *testing.T, client *govultr.Client, id, instance string) *govultr.VirtualFileSystemStorageAttachment {
	t.Helper()
	attachment, response, err := client.VirtualFileSystemStorage.Attach(context.Background(), id, instance)
	ok(t, err)
	if response.StatusCode != http.StatusCreated || attachment.ID != id || attachment.TargetID != instance {
		t.Errorf("%s %+v", response.Status, attachment)
	}
	for deadline := time.Now().Add(patience); attachment.State != "ATTACHED"; {
		attachment, _, err = client.VirtualFileSystemStorage.AttachmentGet(context.Background(), id, instance)
		ok(t, err)
		if time.Now().After(deadline) {
			t.Fatalf("never attached: %+v", attachment)
		}
	}
	return attachment
}

// detached waits until an instance has a file system no more.
func detached(t *testing.T, client *govultr.Client, id, instance string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		_, _, err := client.VirtualFileSystemStorage.AttachmentGet(context.Background(), id, instance)
		if err != nil {
			refused(t, err, "Attachment Not Found")
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("never detached")
		}
	}
}

func TestAFileSystemLivesFromCreateToDelete(t *testing.T) {
	sim := start(t, "vfs_create_ms=100", "vfs_attach_ms=100", "vfs_detach_ms=100")
	client, ctx := sim.client(t, sim.Token), context.Background()
	one, two := sim.instance(t, "one"), sim.instance(t, "two")

	vfs := share(t, client, "a")
	if vfs.Region != "ewr" || vfs.DiskType != "nvme" || vfs.StorageSize.SizeBytes != 20<<30 || vfs.Billing.Monthly != 2 {
		t.Errorf("%+v", vfs)
	}
	if !slices.Equal(vfs.Tags, []string{"x", "y"}) {
		t.Errorf("tags %v", vfs.Tags)
	}
	_, err := time.Parse(time.DateTime, vfs.DateCreated)
	ok(t, err)

	first, second := attachVFS(t, client, vfs.ID, one.ID), attachVFS(t, client, vfs.ID, two.ID)
	if first.MountTag == 0 || first.MountTag == second.MountTag {
		t.Errorf("%+v %+v", first, second)
	}
	attachments, _, err := client.VirtualFileSystemStorage.AttachmentList(ctx, vfs.ID)
	ok(t, err)
	if !slices.Equal(attachments, []govultr.VirtualFileSystemStorageAttachment{*first, *second}) {
		t.Errorf("%+v", attachments)
	}

	grown, _, err := client.VirtualFileSystemStorage.Update(ctx, vfs.ID, &govultr.VirtualFileSystemStorageUpdateReq{
		StorageSize: govultr.VirtualFileSystemStorageSize{SizeGB: 30},
	})
	ok(t, err)
	if grown.StorageSize.SizeGB != 30 || grown.Label != "a" {
		t.Errorf("%+v", grown)
	}
	// The client sends a size of zero with it.
	named, _, err := client.VirtualFileSystemStorage.Update(ctx, vfs.ID,
		&govultr.VirtualFileSystemStorageUpdateReq{Label: "b"})
	ok(t, err)
	if named.StorageSize.SizeGB != 30 || named.Label != "b" {
		t.Errorf("%+v", named)
	}

	refused(t, client.VirtualFileSystemStorage.Delete(ctx, vfs.ID),
		"Can not delete this subscription until it is detatched from all machines")
	for _, instance := range []string{one.ID, two.ID} {
		ok(t, client.VirtualFileSystemStorage.Detach(ctx, vfs.ID, instance))
		detached(t, client, vfs.ID, instance)
	}
	ok(t, client.VirtualFileSystemStorage.Delete(ctx, vfs.ID))
	_, _, err = client.VirtualFileSystemStorage.Get(ctx, vfs.ID)
	refused(t, err, "Subscription ID Not Found.")
	sim.clean(t)
}

func TestAFileSystemRequestThatCannotBeIsRefused(t *testing.T) {
	sim := start(t)
	client, ctx := sim.client(t, sim.Token), context.Background()
	one, far, vfs := sim.instance(t, "one"), sim.instance(t, "far"), share(t, client, "a")

	_, response, err := client.VirtualFileSystemStorage.Create(ctx, &govultr.VirtualFileSystemStorageReq{
		Region: "ewr", Label: "b", StorageSize: govultr.VirtualFileSystemStorageSize{SizeGB: 9},
	})
	refused(t, err, "at least 10GB")
	if response.StatusCode != http.StatusUnprocessableEntity {
		t.Error(response.Status)
	}
	_, _, err = client.VirtualFileSystemStorage.Update(ctx, vfs.ID, &govultr.VirtualFileSystemStorageUpdateReq{
		StorageSize: govultr.VirtualFileSystemStorageSize{SizeGB: 19},
	})
	refused(t, err, "only be increased")
	_, _, err = client.VirtualFileSystemStorage.Attach(ctx, vfs.ID, far.ID)
	refused(t, err, "another region")
	refused(t, client.VirtualFileSystemStorage.Detach(ctx, vfs.ID, one.ID), "Attachment Not Found")
	attachVFS(t, client, vfs.ID, one.ID)
	_, response, err = client.VirtualFileSystemStorage.Attach(ctx, vfs.ID, one.ID)
	refused(t, err, "already attached")
	if response.StatusCode != http.StatusConflict {
		t.Error(response.Status)
	}
}

// After its retries the client tells no status, only the last answer's text.
func TestFileSystemsCanBeDownWhileVolumesWork(t *testing.T) {
	sim := start(t, "vfs_down=true")
	client, ctx := sim.client(t, sim.Token), context.Background()
	_, _, _, err := client.VirtualFileSystemStorage.List(ctx, nil)
	refused(t, err, "Service unavailable.")
	create(t, client, "a")
}
