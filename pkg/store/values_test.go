package store_test

import "reflect"

// reflectElem returns what the pointer p points to, or p if it is none.
func reflectElem(p any) any {
	v := reflect.ValueOf(p)
	if v.Kind() != reflect.Pointer {
		return p
	}
	return v.Elem().Interface()
}
