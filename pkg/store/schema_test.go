package store_test

import (
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/quicprochat/qpcd/pkg/store"
)

var update = flag.Bool("update", false, "write testdata/schema.sql anew")

// The schema that all migrations lead to stands in one file, so that a change
// of it is seen as one.
func TestGoldenSchema(t *testing.T) {
	db, err := store.Open(t.Context(), store.Options{
		Path: filepath.Join(t.TempDir(), "qpcd.db"), Migrations: store.ServerMigrations(), ApplicationID: 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	schema, err := store.Schema(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "schema.sql")
	if *update {
		if err := os.WriteFile(golden, []byte(schema), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), schema); diff != "" {
		t.Errorf("the schema changed; if that is meant, add a migration and run with -update (-want +got):\n%s", diff)
	}
}
