// SPDX-License-Identifier: Apache-2.0

// Package official holds our pluginregistration.proto against the bindings that
// kubelets are built with.
package official

import (
	"testing"

	"google.golang.org/protobuf/reflect/protodesc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"cloud-block-csi.test/contract/descriptor"
)

func TestOursIsTheOfficialFile(t *testing.T) {
	ours, err := descriptor.Compile("../../../proto", "pluginregistration.proto")
	if err != nil {
		t.Fatal(err)
	}
	theirs := protodesc.ToFileDescriptorProto(registration.File_staging_src_k8s_io_kubelet_pkg_apis_pluginregistration_v1_api_proto)
	if len(theirs.GetMessageType()) != 4 {
		t.Fatalf("not the file that was meant: %v", theirs)
	}
	// Where the file lies is nobody's business.
	ours.Name = theirs.Name
	for _, d := range descriptor.Compare(ours, theirs) {
		t.Error(d)
	}
}
