package driver

import (
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"k8s.io/klog/v2/ktesting"
)

const secret = "kept-to-itself"

// Each field that the specification marks as secret is filled, in each message that has
// one or has a message that has one, and the message is logged.
func TestNoSecretFieldIsLogged(t *testing.T) {
	messages, fields := csi.File_csi_proto.Messages(), 0
	for i := range messages.Len() {
		kind, err := findType(messages.Get(i))
		if err != nil {
			t.Fatal(err)
		}
		message := kind.New()
		filled := fill(message, 4)
		if filled == 0 {
			continue
		}
		fields += filled
		logger := ktesting.NewLogger(t, ktesting.NewConfig(ktesting.Verbosity(int(levelContent)), ktesting.BufferLogs(true)))
		logContent(logger, "Call", "request", message.Interface())
		log := logger.GetSink().(ktesting.Underlier).GetBuffer().String()
		if strings.Contains(log, secret) || !strings.Contains(log, "***stripped***") {
			t.Errorf("%s is logged as %s", messages.Get(i).Name(), log)
		}
		if plain := message.Interface().(interface{ String() string }).String(); !strings.Contains(plain, secret) {
			t.Errorf("%s has no secret to be kept: %s", messages.Get(i).Name(), plain)
		}
	}
	// Those of the calls for volumes, snapshots and nodes.
	if fields < 12 {
		t.Errorf("the specification has only %d secret fields", fields)
	}
}

func findType(descriptor protoreflect.MessageDescriptor) (protoreflect.MessageType, error) {
	return protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
}

// fill sets the secret fields of a message and of those in it, and returns how many.
func fill(message protoreflect.Message, depth int) (filled int) {
	fields := message.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		options := field.Options().(*descriptorpb.FieldOptions)
		switch {
		case proto.GetExtension(options, csi.E_CsiSecret).(bool):
			setSecret(message, field)
			filled++
		case field.Kind() == protoreflect.MessageKind && !field.IsMap() && depth > 0:
			inner := message.NewField(field)
			if field.IsList() {
				element := inner.List().NewElement()
				if count := fill(element.Message(), depth-1); count > 0 {
					inner.List().Append(element)
					message.Set(field, inner)
					filled += count
				}
			} else if count := fill(inner.Message(), depth-1); count > 0 {
				message.Set(field, inner)
				filled += count
			}
		}
	}
	return filled
}

func setSecret(message protoreflect.Message, field protoreflect.FieldDescriptor) {
	value := protoreflect.ValueOfString(secret)
	if field.IsMap() {
		message.Mutable(field).Map().Set(protoreflect.ValueOfString("key").MapKey(), value)
		return
	}
	message.Set(field, value)
}
