package store

import (
	"context"
	"database/sql/driver"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"regexp"
	"strconv"
	"strings"
)

//go:embed migrations
var serverMigrations embed.FS

// ServerMigrations returns the schema of the qpcd server, for [Options].
func ServerMigrations() fs.FS {
	sub, err := fs.Sub(serverMigrations, "migrations")
	if err != nil {
		return serverMigrations // unreachable: the name is valid
	}
	return sub
}

// migration is one numbered step of a schema.
type migration struct {
	name string // file name
	sql  string
}

// Newest returns the number of the newest migration in fsys.
func Newest(fsys fs.FS) (int, error) {
	migrations, err := parseMigrations(fsys)
	return len(migrations), err
}

var migrationName = regexp.MustCompile(`^([0-9]{4})_[a-z0-9_]+\.sql$`)

// parseMigrations reads the .sql files of fsys. Index i holds number i+1.
func parseMigrations(fsys fs.FS) ([]migration, error) {
	entries, err := fs.ReadDir(fsys, ".") // sorted by name
	if err != nil {
		return nil, fmt.Errorf("read migrations: %w", err)
	}
	var out []migration
	for _, e := range entries {
		if path.Ext(e.Name()) != ".sql" {
			continue
		}
		m := migrationName.FindStringSubmatch(e.Name())
		if m == nil {
			return nil, fmt.Errorf("migration %s: want a name like 0001_accounts.sql", e.Name())
		}
		if n, err := strconv.Atoi(m[1]); err != nil || n != len(out)+1 {
			return nil, fmt.Errorf("migration %s: want number %04d next", e.Name(), len(out)+1)
		}
		text, err := fs.ReadFile(fsys, e.Name())
		if err != nil {
			return nil, fmt.Errorf("migration %s: %w", e.Name(), err)
		}
		out = append(out, migration{name: e.Name(), sql: string(text)})
	}
	return out, nil
}

// migrate applies what the file has not seen yet.
func (c *conn) migrate(ctx context.Context, log *slog.Logger, migrations []migration) error {
	var version int
	if err := c.value("PRAGMA user_version", &version); err != nil {
		return err
	}
	if version > len(migrations) {
		return fmt.Errorf("%w: its schema is %d, this program knows %d", ErrNewer, version, len(migrations))
	}
	if version == len(migrations) {
		return nil
	}
	// Foreign keys can be switched only outside a transaction, and a table that
	// others refer to can be rebuilt only without them,
	// https://sqlite.org/lang_altertable.html section 7.
	if err := c.script("PRAGMA foreign_keys = OFF"); err != nil {
		return err
	}
	for i := version; i < len(migrations); i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := c.apply(migrations[i], i+1); err != nil {
			return fmt.Errorf("%s: %w", migrations[i].name, err)
		}
	}
	if version > 0 { // a new file has no past to tell of
		log.Info("database schema changed", "from", version, "to", len(migrations))
	}
	return c.script("PRAGMA foreign_keys = ON")
}

// apply runs one migration and sets the version, both or neither.
func (c *conn) apply(m migration, number int) (err error) {
	if err := c.script("BEGIN IMMEDIATE"); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.script("ROLLBACK"))
		}
	}()
	if err := c.script(m.sql); err != nil {
		return err
	}
	if err := c.script(fmt.Sprintf("PRAGMA user_version = %d", number)); err != nil {
		return err
	}
	if err := c.foreignKeyCheck(); err != nil {
		return err
	}
	if err := c.each("PRAGMA table_list", notStrict); err != nil {
		return err
	}
	return c.script("COMMIT")
}

// notStrict is an error for a row of table_list (schema, name, type, ncol, wr,
// strict) that is a table of ours but not STRICT.
func notStrict(row []driver.Value) error {
	var schema, name, kind string
	var columns, withoutRowID int
	var strict bool
	if err := scanAll(row, []any{&schema, &name, &kind, &columns, &withoutRowID, &strict}); err != nil {
		return err
	}
	if schema == "main" && kind == "table" && !strict && !strings.HasPrefix(name, "sqlite_") {
		return fmt.Errorf("table %s is not STRICT", name)
	}
	return nil
}

// Schema returns the definitions of all tables, indexes, triggers and views,
// one statement a line ending in a semicolon, white space collapsed, tables
// first and sorted by name: text for a golden file.
func Schema(ctx context.Context, db *DB) (string, error) {
	var b strings.Builder
	err := db.Read(ctx, func(tx *Tx) error {
		rows, err := tx.Query(`SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%'
			ORDER BY tbl_name, type <> 'table', type, name`)
		if err != nil {
			return err
		}
		for rows.Next() {
			var sql string
			if err := rows.Scan(&sql); err != nil {
				return err
			}
			b.WriteString(normalise(sql))
			b.WriteString(";\n")
		}
		return rows.Err()
	})
	if err != nil {
		return "", fmt.Errorf("read schema: %w", err)
	}
	return b.String(), nil
}

var lineComment = regexp.MustCompile(`--[^\n]*`)

// normalise strips comments and collapses white space. A "--" within a string
// literal would be taken for a comment; schemas need none.
func normalise(sql string) string {
	return strings.Join(strings.Fields(lineComment.ReplaceAllString(sql, "")), " ")
}
