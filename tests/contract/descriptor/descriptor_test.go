// SPDX-License-Identifier: Apache-2.0

package descriptor_test

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"cloud-block-csi.test/contract/descriptor"
	"cloud-block-csi.test/contract/ours"
)

// The numbers of the options csi_secret and alpha_field.
const (
	secretOption = 1059
	alphaOption  = 1060
)

func TestEveryMistakeIsReported(t *testing.T) {
	file := ours.File(t)
	for name, mistake := range map[string]struct {
		make func(*descriptorpb.FileDescriptorProto)
		want string
	}{
		"field with another number": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "Volume", "volume_id").Number = proto.Int32(12)
			},
			"field csi.v1.Volume.volume_id",
		},
		"field of another type": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "Volume", "capacity_bytes").Type = descriptorpb.FieldDescriptorProto_TYPE_UINT64.Enum()
			},
			"field csi.v1.Volume.capacity_bytes",
		},
		"field of another message's type": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "CreateVolumeResponse", "volume").TypeName = proto.String(".csi.v1.Snapshot")
			},
			"field csi.v1.CreateVolumeResponse.volume",
		},
		"field no longer repeated": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "Volume", "accessible_topology").Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
			},
			"field csi.v1.Volume.accessible_topology",
		},
		"field outside its oneof": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "VolumeCapability", "block").OneofIndex = nil
			},
			"field csi.v1.VolumeCapability.block",
		},
		"field with another JSON name": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "Volume", "volume_id").JsonName = proto.String("id")
			},
			"field csi.v1.Volume.volume_id",
		},
		"field with presence": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "Volume", "volume_id").Proto3Optional = proto.Bool(true)
			},
			"field csi.v1.Volume.volume_id",
		},
		"deprecated field": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "Volume", "volume_id").Options = &descriptorpb.FieldOptions{Deprecated: proto.Bool(true)}
			},
			"field csi.v1.Volume.volume_id",
		},
		"dropped field": {
			func(f *descriptorpb.FileDescriptorProto) {
				m := message(f, "Volume")
				m.Field = slices.DeleteFunc(m.Field, named[*descriptorpb.FieldDescriptorProto]("volume_id"))
			},
			"field csi.v1.Volume.volume_id",
		},
		"invented field": {
			func(f *descriptorpb.FileDescriptorProto) {
				m := message(f, "Topology")
				m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{
					Name:   proto.String("zone"),
					Number: proto.Int32(2),
				})
			},
			"field csi.v1.Topology.zone",
		},
		"secret no longer marked": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "NodeStageVolumeRequest", "secrets").Options = nil
			},
			"field csi.v1.NodeStageVolumeRequest.secrets",
		},
		"secret marked as alpha alone": {
			func(f *descriptorpb.FileDescriptorProto) {
				field(f, "NodeExpandVolumeRequest", "secrets").Options = marked(alphaOption)
			},
			"field csi.v1.NodeExpandVolumeRequest.secrets",
		},
		"dropped oneof": {
			func(f *descriptorpb.FileDescriptorProto) {
				m := message(f, "VolumeContentSource")
				m.OneofDecl[0].Name = proto.String("kind")
				for _, field := range m.Field {
					field.OneofIndex = nil
				}
			},
			"oneof csi.v1.VolumeContentSource.type",
		},
		"alpha message no longer marked": {
			func(f *descriptorpb.FileDescriptorProto) {
				message(f, "VolumeHealth").Options = nil
			},
			"message csi.v1.VolumeHealth",
		},
		"map that is none": {
			func(f *descriptorpb.FileDescriptorProto) {
				message(f, "Topology").NestedType[0].Options = nil
			},
			"message csi.v1.Topology.SegmentsEntry",
		},
		"map to another type": {
			func(f *descriptorpb.FileDescriptorProto) {
				message(f, "Topology").NestedType[0].Field[1].Type = descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum()
			},
			"field csi.v1.Topology.SegmentsEntry.value",
		},
		"dropped message": {
			func(f *descriptorpb.FileDescriptorProto) {
				f.MessageType = slices.DeleteFunc(f.MessageType, named[*descriptorpb.DescriptorProto]("ProbeRequest"))
			},
			"message csi.v1.ProbeRequest",
		},
		"reserved number": {
			func(f *descriptorpb.FileDescriptorProto) {
				message(f, "Volume").ReservedRange = []*descriptorpb.DescriptorProto_ReservedRange{
					{Start: proto.Int32(7), End: proto.Int32(9)},
				}
			},
			"reserved csi.v1.Volume 7 to 8",
		},
		"reserved name": {
			func(f *descriptorpb.FileDescriptorProto) {
				message(f, "Volume").ReservedName = []string{"id"}
			},
			"reserved csi.v1.Volume.id",
		},
		"enum value with another number": {
			func(f *descriptorpb.FileDescriptorProto) {
				f.EnumType[0].Value[1].Number = proto.Int32(9)
			},
			"value csi.v1.VolumeHealthErrorType.DEGRADED",
		},
		"enum value marked as alpha": {
			func(f *descriptorpb.FileDescriptorProto) {
				options := &descriptorpb.EnumValueOptions{}
				options.ProtoReflect().SetUnknown(mark(alphaOption))
				f.EnumType[0].Value[1].Options = options
			},
			"value csi.v1.VolumeHealthErrorType.DEGRADED",
		},
		"enum with aliases": {
			func(f *descriptorpb.FileDescriptorProto) {
				f.EnumType[0].Options = &descriptorpb.EnumOptions{AllowAlias: proto.Bool(true)}
			},
			"enum csi.v1.VolumeHealthErrorType",
		},
		"number reserved in an enum": {
			func(f *descriptorpb.FileDescriptorProto) {
				f.EnumType[0].ReservedRange = []*descriptorpb.EnumDescriptorProto_EnumReservedRange{
					{Start: proto.Int32(7), End: proto.Int32(8)},
				}
			},
			"reserved csi.v1.VolumeHealthErrorType 7 to 8",
		},
		"method of another name": {
			func(f *descriptorpb.FileDescriptorProto) {
				method(f, "Identity", "Probe").Name = proto.String("Ping")
			},
			"method csi.v1.Identity.Probe",
		},
		"method with another input": {
			func(f *descriptorpb.FileDescriptorProto) {
				method(f, "Identity", "Probe").InputType = proto.String(".csi.v1.GetPluginInfoRequest")
			},
			"method csi.v1.Identity.Probe",
		},
		"method with another output": {
			func(f *descriptorpb.FileDescriptorProto) {
				method(f, "Identity", "Probe").OutputType = proto.String(".csi.v1.GetPluginInfoResponse")
			},
			"method csi.v1.Identity.Probe",
		},
		"method that no longer streams": {
			func(f *descriptorpb.FileDescriptorProto) {
				method(f, "SnapshotMetadata", "GetMetadataDelta").ServerStreaming = nil
			},
			"method csi.v1.SnapshotMetadata.GetMetadataDelta",
		},
		"alpha method no longer marked": {
			func(f *descriptorpb.FileDescriptorProto) {
				method(f, "Node", "NodeGetVolumeHealth").Options = nil
			},
			"method csi.v1.Node.NodeGetVolumeHealth",
		},
		"alpha service no longer marked": {
			func(f *descriptorpb.FileDescriptorProto) {
				service(f, "SnapshotMetadata").Options = nil
			},
			"service csi.v1.SnapshotMetadata",
		},
		"extension with another number": {
			func(f *descriptorpb.FileDescriptorProto) {
				i := slices.IndexFunc(f.Extension, named[*descriptorpb.FieldDescriptorProto]("csi_secret"))
				f.Extension[i].Number = proto.Int32(1)
			},
			"extension csi.v1.csi_secret",
		},
		"another Go package": {
			func(f *descriptorpb.FileDescriptorProto) {
				f.Options.GoPackage = proto.String("csi")
			},
			"file csi.proto",
		},
		"dropped import": {
			func(f *descriptorpb.FileDescriptorProto) {
				f.Dependency = slices.DeleteFunc(f.Dependency, func(name string) bool {
					return strings.HasSuffix(name, "/wrappers.proto")
				})
			},
			"import google/protobuf/wrappers.proto",
		},
	} {
		t.Run(name, func(t *testing.T) {
			mistaken := proto.CloneOf(file)
			mistake.make(mistaken)
			differences := descriptor.Compare(mistaken, file)
			if !slices.ContainsFunc(differences, func(d descriptor.Difference) bool {
				return d.Fact == mistake.want
			}) {
				t.Errorf("%s: not among %v", mistake.want, differences)
			}
		})
	}
}

func TestWhatTheWireDoesNotKnowIsNoDifference(t *testing.T) {
	file := ours.File(t)
	for name, change := range map[string]func(*descriptorpb.FileDescriptorProto){
		"nothing": func(*descriptorpb.FileDescriptorProto) {},
		"order of declarations": func(f *descriptorpb.FileDescriptorProto) {
			slices.Reverse(f.MessageType)
			slices.Reverse(f.Service)
			slices.Reverse(message(f, "Volume").Field)
		},
		"empty options": func(f *descriptorpb.FileDescriptorProto) {
			field(f, "Volume", "volume_id").Options = &descriptorpb.FieldOptions{}
		},
		"options left undecoded": func(f *descriptorpb.FileDescriptorProto) {
			field(f, "NodeExpandVolumeRequest", "secrets").Options = marked(alphaOption, secretOption)
		},
	} {
		t.Run(name, func(t *testing.T) {
			changed := proto.CloneOf(file)
			change(changed)
			for _, d := range descriptor.Compare(changed, file) {
				t.Error(d)
			}
		})
	}
}

func TestEverySecretIsMarkedAsOne(t *testing.T) {
	for _, m := range ours.File(t).MessageType {
		for _, field := range m.Field {
			if field.GetName() != "secrets" {
				continue
			}
			raw, err := proto.Marshal(field.Options)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(raw), string(mark(secretOption))) {
				t.Errorf("%s: not marked", m.GetName())
			}
		}
	}
}

// mark is an option that is set to true, on the wire.
func mark(option protowire.Number) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, option, protowire.VarintType), 1)
}

func marked(options ...protowire.Number) *descriptorpb.FieldOptions {
	made := &descriptorpb.FieldOptions{}
	var raw []byte
	for _, option := range options {
		raw = append(raw, mark(option)...)
	}
	made.ProtoReflect().SetUnknown(raw)
	return made
}

func named[T interface{ GetName() string }](name string) func(T) bool {
	return func(declared T) bool { return declared.GetName() == name }
}

func find[T interface{ GetName() string }](all []T, name string) T {
	i := slices.IndexFunc(all, named[T](name))
	if i < 0 {
		panic("not declared: " + name)
	}
	return all[i]
}

func message(f *descriptorpb.FileDescriptorProto, name string) *descriptorpb.DescriptorProto {
	return find(f.MessageType, name)
}

func field(f *descriptorpb.FileDescriptorProto, of, name string) *descriptorpb.FieldDescriptorProto {
	return find(message(f, of).Field, name)
}

func service(f *descriptorpb.FileDescriptorProto, name string) *descriptorpb.ServiceDescriptorProto {
	return find(f.Service, name)
}

func method(f *descriptorpb.FileDescriptorProto, of, name string) *descriptorpb.MethodDescriptorProto {
	return find(service(f, of).Method, name)
}
