// SPDX-License-Identifier: Apache-2.0

// Package official holds our csi.proto against the bindings of CSI 1.12.
package official

import (
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/reflect/protodesc"

	"cloud-block-csi.test/contract/descriptor"
	"cloud-block-csi.test/contract/ours"
)

func TestTheConditionIsTheOfficialOne(t *testing.T) {
	theirs := descriptor.Facts(protodesc.ToFileDescriptorProto(csi.File_csi_proto))
	mine := descriptor.Facts(ours.File(t))
	for _, fact := range ours.Condition {
		if mine[fact] == "" || mine[fact] != theirs[fact] {
			t.Errorf("%s: ours (%s), theirs (%s)", fact, mine[fact], theirs[fact])
		}
	}
}

func TestAPeerOfTheOlderVersionMissesNothing(t *testing.T) {
	theirs := protodesc.ToFileDescriptorProto(csi.File_csi_proto)
	for _, d := range descriptor.Compare(ours.File(t), theirs) {
		if d.Theirs != "" {
			t.Error(d)
		}
	}
}
