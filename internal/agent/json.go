package agent

import (
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// JSON as encoding/json has it, for what the messages here are made of: structs
// with tags, strings, numbers, truth values, lists, maps of strings, pointers.
// That package would make the agent, which every guest with a kernel of its own
// holds in memory, an eighth larger. Tests hold both to the same.

// Encode fails only for what no message is made of.
func Encode(v any) ([]byte, error) { return appendValue(nil, reflect.ValueOf(v)) }

func appendValue(b []byte, v reflect.Value) ([]byte, error) {
	switch v.Kind() {
	case reflect.Bool:
		return strconv.AppendBool(b, v.Bool()), nil
	case reflect.Int, reflect.Int64, reflect.Int32:
		return strconv.AppendInt(b, v.Int(), 10), nil
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.AppendUint(b, v.Uint(), 10), nil
	case reflect.Float64:
		return strconv.AppendFloat(b, v.Float(), 'g', -1, 64), nil
	case reflect.String:
		return appendString(b, v.String()), nil
	case reflect.Pointer:
		if v.IsNil() {
			return append(b, "null"...), nil
		}
		return appendValue(b, v.Elem())
	case reflect.Slice, reflect.Array:
		return appendList(b, v)
	case reflect.Map:
		return appendMap(b, v)
	case reflect.Struct:
		return appendStruct(b, v)
	}
	return nil, fmt.Errorf("a %s has no place in a message", v.Kind())
}

func appendList(b []byte, v reflect.Value) (_ []byte, err error) {
	if v.Kind() == reflect.Slice && v.IsNil() {
		return append(b, "null"...), nil
	}
	b = append(b, '[')
	for i := range v.Len() {
		if i > 0 {
			b = append(b, ',')
		}
		if b, err = appendValue(b, v.Index(i)); err != nil {
			return nil, err
		}
	}
	return append(b, ']'), nil
}

func appendMap(b []byte, v reflect.Value) (_ []byte, err error) {
	if v.IsNil() {
		return append(b, "null"...), nil
	}
	b = append(b, '{')
	for i, k := range v.MapKeys() {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, k.String()), ':')
		if b, err = appendValue(b, v.MapIndex(k)); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendStruct(b []byte, v reflect.Value) (_ []byte, err error) {
	b = append(b, '{')
	first := true
	for i := range v.NumField() {
		name, options, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		f := v.Field(i)
		if options == "omitempty" && (f.IsZero() || f.Kind() == reflect.Slice && f.Len() == 0 || f.Kind() == reflect.Map && f.Len() == 0) {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(appendString(b, name), ':')
		if b, err = appendValue(b, f); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

const digits = "0123456789abcdef"

func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	for _, r := range s { // what is no UTF-8 becomes U+FFFD
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', digits[r>>4], digits[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// depthMax bounds how deep values lie in each other.
const depthMax = 16

var errJSON = errors.New("it is no JSON of the kind that was expected")

// Decode reads b into what v points to. Fields that v does not know are passed
// over.
func Decode(b []byte, v any) error {
	d := decoder{b: b}
	d.space()
	if err := d.value(reflect.ValueOf(v).Elem(), 0); err != nil {
		return err
	}
	if d.space(); d.at < len(d.b) {
		return errJSON
	}
	return nil
}

type decoder struct {
	b  []byte
	at int
}

func (d *decoder) peek() byte {
	if d.at < len(d.b) {
		return d.b[d.at]
	}
	return 0
}

func (d *decoder) space() {
	for d.at < len(d.b) && strings.IndexByte(" \t\r\n", d.b[d.at]) >= 0 {
		d.at++
	}
}

// take goes past text if that is next.
func (d *decoder) take(text string) bool {
	if !strings.HasPrefix(string(d.b[d.at:min(len(d.b), d.at+len(text))]), text) {
		return false
	}
	d.at += len(text)
	return true
}

// value reads one value into v, or nowhere if v is none.
func (d *decoder) value(v reflect.Value, depth int) error {
	if depth > depthMax {
		return errJSON
	}
	if d.take("null") {
		if v.IsValid() && (v.Kind() == reflect.Pointer || v.Kind() == reflect.Slice || v.Kind() == reflect.Map) {
			v.SetZero()
		}
		return nil
	}
	if v.IsValid() && v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		return d.value(v.Elem(), depth+1)
	}
	switch c := d.peek(); {
	case c == '{':
		return d.object(v, depth)
	case c == '[':
		return d.list(v, depth)
	case c == '"':
		return d.string(v)
	case c == 't' || c == 'f':
		return d.truth(v)
	}
	return d.number(v)
}

func (d *decoder) string(v reflect.Value) error {
	s, err := d.text()
	if err != nil || !v.IsValid() {
		return err
	}
	if v.Kind() != reflect.String {
		return errJSON
	}
	v.SetString(s)
	return nil
}

func (d *decoder) truth(v reflect.Value) error {
	truth := d.take("true")
	switch {
	case !truth && !d.take("false"):
		return errJSON
	case !v.IsValid():
		return nil
	case v.Kind() != reflect.Bool:
		return errJSON
	}
	v.SetBool(truth)
	return nil
}

// each calls item before each item of a list or object, whose end is close.
func (d *decoder) each(end byte, item func() error) error {
	d.at++
	d.space()
	if d.peek() == end {
		d.at++
		return nil
	}
	for {
		d.space()
		if err := item(); err != nil {
			return err
		}
		d.space()
		c := d.peek()
		d.at++
		switch c {
		case ',':
		case end:
			return nil
		default:
			return errJSON
		}
	}
}

func (d *decoder) list(v reflect.Value, depth int) error {
	n := 0
	if v.IsValid() {
		switch v.Kind() {
		case reflect.Slice:
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		case reflect.Array:
			v.SetZero()
		default:
			return errJSON
		}
	}
	return d.each(']', func() error {
		item := reflect.Value{}
		switch {
		case !v.IsValid():
		case v.Kind() == reflect.Slice:
			v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
			item = v.Index(n)
		case n < v.Len():
			item = v.Index(n)
		}
		n++
		return d.value(item, depth+1)
	})
}

func (d *decoder) object(v reflect.Value, depth int) error {
	if v.IsValid() {
		switch v.Kind() {
		case reflect.Struct:
		case reflect.Map:
			if v.IsNil() {
				v.Set(reflect.MakeMap(v.Type()))
			}
		default:
			return errJSON
		}
	}
	return d.each('}', func() error {
		if d.peek() != '"' {
			return errJSON
		}
		key, err := d.text()
		if err != nil {
			return err
		}
		d.space()
		if !d.take(":") {
			return errJSON
		}
		d.space()
		switch {
		case !v.IsValid():
			return d.value(v, depth+1)
		case v.Kind() == reflect.Struct:
			return d.value(field(v, key), depth+1)
		}
		item := reflect.New(v.Type().Elem()).Elem()
		if err := d.value(item, depth+1); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(key), item)
		return nil
	})
}

// field is the one that a struct's tag calls name, or none.
func field(v reflect.Value, name string) reflect.Value {
	for i := range v.NumField() {
		if tag, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ","); tag == name {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

// text reads a string.
func (d *decoder) text() (string, error) {
	d.at++
	var s strings.Builder
	for d.at < len(d.b) {
		switch c := d.b[d.at]; {
		case c == '"':
			d.at++
			return s.String(), nil
		case c < ' ':
			return "", errJSON
		case c == '\\':
			r, err := d.escaped()
			if err != nil {
				return "", err
			}
			s.WriteRune(r)
		default:
			r, n := utf8.DecodeRune(d.b[d.at:])
			d.at += n
			s.WriteRune(r)
		}
	}
	return "", errJSON
}

// escaped reads what a backslash begins.
func (d *decoder) escaped() (rune, error) {
	if d.at+1 >= len(d.b) {
		return 0, errJSON
	}
	c := d.b[d.at+1]
	if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 {
		d.at += 2
		return rune("\"\\/\b\f\n\r\t"[i]), nil
	}
	r, ok := d.unit(d.at)
	if !ok {
		return 0, errJSON
	}
	d.at += 6
	if utf16.IsSurrogate(r) {
		if low, ok := d.unit(d.at); ok {
			if whole := utf16.DecodeRune(r, low); whole != utf8.RuneError {
				d.at += 6
				return whole, nil
			}
		}
		return utf8.RuneError, nil
	}
	return r, nil
}

// unit reads \uXXXX.
func (d *decoder) unit(at int) (rune, bool) {
	if at+6 > len(d.b) || d.b[at] != '\\' || d.b[at+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range d.b[at+2 : at+6] {
		i := strings.IndexByte(digits, c|0x20)
		if i < 0 || c < '0' {
			return 0, false
		}
		r = r<<4 | rune(i)
	}
	return r, true
}

func (d *decoder) number(v reflect.Value) error {
	from := d.at
	for d.at < len(d.b) && strings.IndexByte("+-.eE0123456789", d.b[d.at]) >= 0 {
		d.at++
	}
	s := string(d.b[from:d.at])
	if !isNumber(s) {
		return errJSON
	}
	if !v.IsValid() {
		return nil
	}
	switch v.Kind() {
	case reflect.Int, reflect.Int64, reflect.Int32:
		n, err := strconv.ParseInt(s, 10, v.Type().Bits())
		v.SetInt(n)
		return err
	case reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := strconv.ParseUint(s, 10, v.Type().Bits())
		v.SetUint(n)
		return err
	case reflect.Float64:
		n, err := strconv.ParseFloat(s, 64)
		v.SetFloat(n)
		return err
	}
	return errJSON
}

// isNumber holds s to the grammar of numbers.
func isNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	whole := strings.TrimLeft(s, "0123456789")
	n := len(s) - len(whole)
	if n == 0 || n > 1 && s[0] == '0' {
		return false
	}
	if fraction, ok := strings.CutPrefix(whole, "."); ok {
		whole = strings.TrimLeft(fraction, "0123456789")
		if len(whole) == len(fraction) {
			return false
		}
	}
	if whole == "" {
		return true
	}
	if whole[0] != 'e' && whole[0] != 'E' {
		return false
	}
	exponent := strings.TrimPrefix(strings.TrimPrefix(whole[1:], "+"), "-")
	if len(whole)-1-len(exponent) > 1 { // both signs
		return false
	}
	return exponent != "" && strings.Trim(exponent, "0123456789") == ""
}
