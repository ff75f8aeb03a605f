// Package deepcopy copies values of plain data to memory of their own.
package deepcopy

import (
	"reflect"
	"strings"

	"google.golang.org/protobuf/proto"
)

// Copier makes copies that share nothing with what they are of, but equal strings with each other. It leaves next to no
// garbage between them, so that they lie side by side. Not for concurrent use; the zero value is ready.
type Copier struct {
	strings map[string]string
	wire    []byte
}

// Of copies what v points to: exported fields of structs, pointers, slices, maps, arrays, strings, protobuf messages.
// Structs with unexported fields (time.Time, netip.Addr) and all else, such as functions, are copied as an assignment does.
func Of[T any](c *Copier, v *T) (*T, error) {
	next := new(T)
	return next, c.copy(reflect.ValueOf(next).Elem(), reflect.ValueOf(v).Elem())
}

// copy sets to, which is zero and can be set, to a copy of from.
func (c *Copier) copy(to, from reflect.Value) (err error) {
	switch from.Kind() {
	case reflect.String:
		to.SetString(c.string(from.String()))
	case reflect.Pointer:
		if from.IsNil() {
			return nil
		}
		to.Set(reflect.New(from.Type().Elem()))
		if m, ok := from.Interface().(proto.Message); ok {
			return c.message(to.Interface().(proto.Message), m)
		}
		return c.copy(to.Elem(), from.Elem())
	case reflect.Struct:
		if !open(from.Type()) {
			to.Set(from)
			return nil
		}
		for i := range from.NumField() {
			if err := c.copy(to.Field(i), from.Field(i)); err != nil {
				return err
			}
		}
	case reflect.Slice:
		return c.slice(to, from)
	case reflect.Array:
		for i := range from.Len() {
			if err := c.copy(to.Index(i), from.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Map:
		return c.dict(to, from)
	default:
		to.Set(from)
	}
	return nil
}

// open tells whether all fields of a struct are exported.
func open(t reflect.Type) bool {
	for i := range t.NumField() {
		if !t.Field(i).IsExported() {
			return false
		}
	}
	return true
}

func (c *Copier) slice(to, from reflect.Value) error {
	if from.IsNil() {
		return nil
	}
	to.Set(reflect.MakeSlice(from.Type(), from.Len(), from.Len()))
	if from.Type().Elem().Kind() == reflect.Uint8 {
		reflect.Copy(to, from)
		return nil
	}
	for i := range from.Len() {
		if err := c.copy(to.Index(i), from.Index(i)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Copier) dict(to, from reflect.Value) error {
	if from.IsNil() {
		return nil
	}
	to.Set(reflect.MakeMapWithSize(from.Type(), from.Len()))
	for i := from.MapRange(); i.Next(); {
		k, v := reflect.New(from.Type().Key()).Elem(), reflect.New(from.Type().Elem()).Elem()
		if err := c.copy(k, i.Key()); err != nil {
			return err
		}
		if err := c.copy(v, i.Value()); err != nil {
			return err
		}
		to.SetMapIndex(k, v)
	}
	return nil
}

// message copies by way of the wire: proto.Clone would share the strings, and so keep their old memory.
func (c *Copier) message(to, from proto.Message) (err error) {
	if c.wire, err = (proto.MarshalOptions{}).MarshalAppend(c.wire[:0], from); err != nil {
		return err
	}
	return proto.Unmarshal(c.wire, to)
}

func (c *Copier) string(s string) string {
	if s == "" {
		return ""
	}
	known, ok := c.strings[s]
	if !ok {
		if c.strings == nil {
			c.strings = map[string]string{}
		}
		known = strings.Clone(s)
		c.strings[known] = known
	}
	return known
}
