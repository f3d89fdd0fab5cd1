// SPDX-License-Identifier: Apache-2.0

// Package ours knows this repository's csi.proto and where it is meant to
// differ from the official ones.
//
// Run the tests that use it with -count=1: the file lies outside their modules,
// so a change to it doesn't make go test drop a result that it has cached.
package ours

import (
	"testing"

	"google.golang.org/protobuf/types/descriptorpb"

	"cloud-block-csi.test/contract/descriptor"
)

// directory is where the file lies, seen from each package that tests it.
const directory = "../../../proto"

// Condition lists what ours has of CSI 1.12 and CSI 1.13 no longer has.
var Condition = []string{
	"message csi.v1.VolumeCondition",
	"field csi.v1.VolumeCondition.abnormal",
	"field csi.v1.VolumeCondition.message",
	"field csi.v1.ControllerGetVolumeResponse.VolumeStatus.volume_condition",
	"field csi.v1.ListVolumesResponse.VolumeStatus.volume_condition",
	"field csi.v1.NodeGetVolumeStatsResponse.volume_condition",
	"value csi.v1.ControllerServiceCapability.RPC.Type.VOLUME_CONDITION",
	"value csi.v1.NodeServiceCapability.RPC.Type.VOLUME_CONDITION",
}

// Unreserved lists what CSI 1.13 reserves in the condition's place.
var Unreserved = []string{
	"reserved csi.v1.ControllerGetVolumeResponse.VolumeStatus 2 to 2",
	"reserved csi.v1.ListVolumesResponse.VolumeStatus 2 to 2",
	"reserved csi.v1.NodeGetVolumeStatsResponse 2 to 2",
	"reserved csi.v1.ControllerServiceCapability.RPC.Type 11 to 11",
	"reserved csi.v1.NodeServiceCapability.RPC.Type 4 to 4",
}

// File compiles csi.proto.
func File(t *testing.T) *descriptorpb.FileDescriptorProto {
	t.Helper()
	file, err := descriptor.Compile(directory, "csi.proto")
	if err != nil {
		t.Fatal(err)
	}
	return file
}
