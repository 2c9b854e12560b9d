package command

import (
	"encoding/json"
	"io"
)

// WriteJSON writes a value as indented JSON, for scripts and people.
func WriteJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
