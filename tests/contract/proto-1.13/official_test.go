// SPDX-License-Identifier: Apache-2.0

// Package official holds our csi.proto against the bindings of CSI 1.13.
package official

import (
	"slices"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/reflect/protodesc"

	"cloud-block-csi.test/contract/descriptor"
	"cloud-block-csi.test/contract/ours"
)

func TestOnlyTheConditionSetsOursApartFromTheOfficialFile(t *testing.T) {
	theirs := protodesc.ToFileDescriptorProto(csi.File_csi_proto)
	met := map[string]bool{}
	for _, d := range descriptor.Compare(ours.File(t), theirs) {
		switch {
		case d.Theirs == "" && slices.Contains(ours.Condition, d.Fact):
		case d.Ours == "" && slices.Contains(ours.Unreserved, d.Fact):
		default:
			t.Error(d)
		}
		met[d.Fact] = true
	}
	for _, fact := range slices.Concat(ours.Condition, ours.Unreserved) {
		if !met[fact] {
			t.Errorf("%s: no longer a difference", fact)
		}
	}
}
