package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"reflect"
)

// bind turns arguments into what the drivers take, in the connection's scratch
// space, and returns their size in bytes too.
func (c *conn) bind(args []any) ([]driver.NamedValue, int, error) {
	c.args = c.args[:0]
	size := 0
	for i, a := range args {
		v, err := argument(a)
		if err != nil {
			return nil, 0, fmt.Errorf("argument %d: %w", i+1, err)
		}
		switch v := v.(type) {
		case []byte:
			size += len(v)
		case string:
			size += len(v)
		default:
			size += 8
		}
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return c.args, size, nil
}

// emptyBlob stands for a nil slice: the drivers would make NULL of it.
var emptyBlob = make([]byte, 0)

// argument converts one argument, see [Tx.Exec].
func argument(a any) (driver.Value, error) {
	switch v := a.(type) {
	case nil:
		return nil, nil
	case []byte:
		if v == nil {
			return emptyBlob, nil
		}
		return v, nil
	case string:
		return v, nil
	case int64:
		return v, nil
	case int:
		return int64(v), nil
	case uint64:
		if v > math.MaxInt64 {
			return nil, fmt.Errorf("%d does not fit SQLite's 64-bit integer", v)
		}
		return int64(v), nil
	case uint32:
		return int64(v), nil
	case bool:
		if v {
			return int64(1), nil
		}
		return int64(0), nil
	case float64:
		return v, nil
	case [32]byte:
		return v[:], nil
	case [16]byte:
		return v[:], nil
	}
	switch v := reflect.ValueOf(a); v.Kind() {
	case reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Int:
		return v.Int(), nil
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uint:
		return argument(v.Uint())
	case reflect.Bool:
		return argument(v.Bool())
	case reflect.Float32:
		return v.Float(), nil
	case reflect.String:
		return v.String(), nil
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return argument(v.Bytes())
		}
	case reflect.Array:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b := make([]byte, v.Len())
			reflect.Copy(reflect.ValueOf(b), v)
			return b, nil
		}
	}
	return nil, fmt.Errorf("type %T cannot be stored", a)
}

// scanAll stores a row in dest, see [Rows.Scan].
func scanAll(values []driver.Value, dest []any) error {
	if len(values) != len(dest) {
		return fmt.Errorf("scan: %d columns into %d destinations", len(values), len(dest))
	}
	for i, v := range values {
		if err := scan(v, dest[i]); err != nil {
			return fmt.Errorf("scan column %d: %w", i+1, err)
		}
	}
	return nil
}

// scan stores one value, copying it where the driver lent it only.
func scan(v driver.Value, dest any) error {
	if b, ok := v.([]byte); ok && blobsBorrowed {
		v = append([]byte{}, b...)
	}
	switch d := dest.(type) {
	case *any:
		*d = v
		return nil
	case *[]byte:
		switch v := v.(type) {
		case nil:
			*d = nil
			return nil
		case []byte:
			if v == nil {
				v = []byte{} // an empty blob, which is not NULL
			}
			*d = v
			return nil
		}
		return mismatch(v, dest)
	case *string:
		s, ok := v.(string)
		if !ok {
			return mismatch(v, dest)
		}
		*d = s
		return nil
	case *float64:
		switch v := v.(type) {
		case float64:
			*d = v
			return nil
		case int64:
			*d = float64(v)
			return nil
		}
		return mismatch(v, dest)
	case *[32]byte:
		return scanArray(v, d[:], dest)
	case *[16]byte:
		return scanArray(v, d[:], dest)
	case sql.Scanner: // sql.Null and the like
		return d.Scan(v)
	}
	p := reflect.ValueOf(dest)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return fmt.Errorf("destination %T is not a pointer", dest)
	}
	e := p.Elem()
	if e.Kind() == reflect.Array && e.Type().Elem().Kind() == reflect.Uint8 {
		return scanArray(v, e.Slice(0, e.Len()).Bytes(), dest)
	}
	return scanKind(v, e, dest)
}

// scanKind stores v in a variable of a basic kind.
func scanKind(v driver.Value, e reflect.Value, dest any) error {
	switch v := v.(type) {
	case int64:
		switch e.Kind() {
		case reflect.Bool:
			e.SetBool(v != 0)
			return nil
		case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
			if !e.OverflowInt(v) {
				e.SetInt(v)
				return nil
			}
			return fmt.Errorf("%d does not fit %T", v, dest)
		case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
			if v >= 0 && !e.OverflowUint(uint64(v)) {
				e.SetUint(uint64(v))
				return nil
			}
			return fmt.Errorf("%d does not fit %T", v, dest)
		}
	case string:
		if e.Kind() == reflect.String {
			e.SetString(v)
			return nil
		}
	case []byte:
		if e.Kind() == reflect.Slice && e.Type().Elem().Kind() == reflect.Uint8 {
			e.SetBytes(append([]byte{}, v...))
			return nil
		}
	}
	return mismatch(v, dest)
}

// scanArray fills an array of bytes, whose length must be the blob's.
func scanArray(v driver.Value, array []byte, dest any) error {
	b, ok := v.([]byte)
	if !ok {
		return mismatch(v, dest)
	}
	if len(b) != len(array) {
		return fmt.Errorf("a blob of %d bytes does not fit %T", len(b), dest)
	}
	copy(array, b)
	return nil
}

// errMismatch: the column's type is not the destination's.
var errMismatch = errors.New("type mismatch")

func mismatch(v driver.Value, dest any) error {
	if v == nil {
		return fmt.Errorf("%w: NULL into %T", errMismatch, dest)
	}
	return fmt.Errorf("%w: %T into %T", errMismatch, v, dest)
}
