// SPDX-License-Identifier: Apache-2.0

// Package descriptor compares protobuf files declaration by declaration.
//
// It exists apart from the tests that use it because each official binding
// registers a csi.proto of its own, and a process can hold only one of them.
package descriptor

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Compile reads the named file below dir, with what it imports.
func Compile(dir, name string) (*descriptorpb.FileDescriptorProto, error) {
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			ImportPaths: []string{dir},
		}),
	}
	files, err := compiler.Compile(context.Background(), name)
	if err != nil {
		return nil, err
	}
	return protodesc.ToFileDescriptorProto(files[0]), nil
}

// Facts lists what a file declares: the kind and full name of each declaration
// with everything that its descriptor says of it, options included. The order
// of declarations and the comments are left out, as the wire knows neither.
func Facts(file *descriptorpb.FileDescriptorProto) map[string]string {
	facts := collector{}
	facts.file(file)
	return facts
}

// Difference is a fact on which two files disagree. An absent one is empty.
type Difference struct {
	Fact         string
	Ours, Theirs string
}

func (d Difference) String() string {
	switch {
	case d.Theirs == "":
		return fmt.Sprintf("%s: ours alone (%s)", d.Fact, d.Ours)
	case d.Ours == "":
		return fmt.Sprintf("%s: theirs alone (%s)", d.Fact, d.Theirs)
	default:
		return fmt.Sprintf("%s: ours (%s), theirs (%s)", d.Fact, d.Ours, d.Theirs)
	}
}

// Compare returns every fact on which two files disagree, sorted.
func Compare(ours, theirs *descriptorpb.FileDescriptorProto) []Difference {
	a, b := Facts(ours), Facts(theirs)
	all := maps.Clone(a)
	maps.Copy(all, b)
	var differences []Difference
	for _, fact := range slices.Sorted(maps.Keys(all)) {
		if a[fact] != b[fact] {
			differences = append(differences, Difference{fact, a[fact], b[fact]})
		}
	}
	return differences
}

type collector map[string]string

func (c collector) add(kind, name, says string) {
	fact := kind + " " + name
	if _, twice := c[fact]; twice {
		panic("declared twice: " + fact)
	}
	c[fact] = says
}

// says renders a descriptor. Its children must have been taken out before:
// going through all that is left, rather than through a list of attributes,
// lets no attribute go uncompared.
func says(descriptor proto.Message, options proto.Message) string {
	var parts []string
	m := descriptor.ProtoReflect()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Name() == "options" || !m.Has(field) {
			continue
		}
		parts = append(parts, fmt.Sprintf("%s=%v", field.Name(), value(field, m.Get(field))))
	}
	return strings.Join(append(parts, optionFacts(options)...), " ")
}

func value(field protoreflect.FieldDescriptor, v protoreflect.Value) any {
	if field.IsList() || field.Message() != nil {
		panic("descriptor still has its " + field.Name())
	}
	if field.Enum() != nil {
		return field.Enum().Values().ByNumber(v.Enum()).Name()
	}
	return v.Interface()
}

// optionFacts renders options from their bytes: an extension counts the same
// whether or not this process knows it, as does an empty set and none at all.
func optionFacts(options proto.Message) []string {
	type option struct {
		number protowire.Number
		text   string
	}
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(options)
	if err != nil {
		panic(err)
	}
	var found []option
	for len(raw) > 0 {
		number, kind, tag := protowire.ConsumeTag(raw)
		size := protowire.ConsumeFieldValue(number, kind, raw[tag:])
		if tag < 0 || size < 0 {
			panic("malformed options")
		}
		found = append(found, option{number, fmt.Sprintf("option:%d=%q", number, raw[tag:tag+size])})
		raw = raw[tag+size:]
	}
	slices.SortStableFunc(found, func(a, b option) int { return cmp.Compare(a.number, b.number) })
	texts := make([]string, len(found))
	for i, o := range found {
		texts[i] = o.text
	}
	return texts
}

func (c collector) file(original *descriptorpb.FileDescriptorProto) {
	file := proto.CloneOf(original)
	scope := file.GetPackage()
	for _, name := range file.Dependency {
		c.add("import", name, "present")
	}
	for _, message := range file.MessageType {
		c.message(scope, message)
	}
	for _, enum := range file.EnumType {
		c.enum(scope, enum)
	}
	for _, extension := range file.Extension {
		c.field("extension", scope, extension, nil)
	}
	for _, service := range file.Service {
		c.service(scope, service)
	}
	file.Dependency, file.MessageType, file.EnumType = nil, nil, nil
	file.Extension, file.Service, file.SourceCodeInfo = nil, nil, nil
	c.add("file", file.GetName(), says(file, file.Options))
}

func (c collector) message(scope string, message *descriptorpb.DescriptorProto) {
	name := scope + "." + message.GetName()
	for _, field := range message.Field {
		c.field("field", name, field, message.OneofDecl)
	}
	for _, extension := range message.Extension {
		c.field("extension", name, extension, nil)
	}
	for _, nested := range message.NestedType {
		c.message(name, nested)
	}
	for _, enum := range message.EnumType {
		c.enum(name, enum)
	}
	for _, oneof := range message.OneofDecl {
		c.add("oneof", name+"."+oneof.GetName(), says(oneof, oneof.Options))
	}
	for _, numbers := range message.ExtensionRange {
		// Ranges of messages leave their end out.
		c.add("extensions", span(name, numbers.GetStart(), numbers.GetEnd()-1),
			strings.Join(append([]string{"present"}, optionFacts(numbers.Options)...), " "))
	}
	for _, numbers := range message.ReservedRange {
		c.add("reserved", span(name, numbers.GetStart(), numbers.GetEnd()-1), "present")
	}
	for _, reserved := range message.ReservedName {
		c.add("reserved", name+"."+reserved, "present")
	}
	message.Field, message.Extension, message.NestedType, message.EnumType = nil, nil, nil, nil
	message.OneofDecl, message.ExtensionRange = nil, nil
	message.ReservedRange, message.ReservedName = nil, nil
	c.add("message", name, says(message, message.Options))
}

func (c collector) field(
	kind, scope string,
	field *descriptorpb.FieldDescriptorProto,
	oneofs []*descriptorpb.OneofDescriptorProto,
) {
	text := ""
	if field.OneofIndex != nil {
		// By name, as the index depends on the order of declaration.
		text = " oneof=" + oneofs[field.GetOneofIndex()].GetName()
		field.OneofIndex = nil
	}
	c.add(kind, scope+"."+field.GetName(), says(field, field.Options)+text)
}

func (c collector) enum(scope string, enum *descriptorpb.EnumDescriptorProto) {
	name := scope + "." + enum.GetName()
	for _, v := range enum.Value {
		c.add("value", name+"."+v.GetName(), says(v, v.Options))
	}
	for _, numbers := range enum.ReservedRange {
		c.add("reserved", span(name, numbers.GetStart(), numbers.GetEnd()), "present")
	}
	for _, reserved := range enum.ReservedName {
		c.add("reserved", name+"."+reserved, "present")
	}
	enum.Value, enum.ReservedRange, enum.ReservedName = nil, nil, nil
	c.add("enum", name, says(enum, enum.Options))
}

func (c collector) service(scope string, service *descriptorpb.ServiceDescriptorProto) {
	name := scope + "." + service.GetName()
	for _, method := range service.Method {
		c.add("method", name+"."+method.GetName(), says(method, method.Options))
	}
	service.Method = nil
	c.add("service", name, says(service, service.Options))
}

func span(name string, first, last int32) string {
	return fmt.Sprintf("%s %d to %d", name, first, last)
}
