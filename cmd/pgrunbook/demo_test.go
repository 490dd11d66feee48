package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
)

// plantVariable makes the program of a script spoil, after an apply that ended well, what the demo
// is about to prove.
const plantVariable = "PGRUNBOOK_TEST_PLANT"

// scripted is the program as scripts run it.
func scripted() {
	if os.Getenv(plantVariable) == "" || len(os.Args) < 2 || os.Args[1] != "apply" {
		main()
		return
	}
	code := run(os.Args[1:])
	if code == exitDone {
		if err := plant(); err != nil {
			fmt.Fprintln(os.Stderr, "planting differences:", err)
			code = exitFailed
		}
	}
	os.Exit(code)
}

// plant takes an acknowledged commit from the target, and gives the closed source a row that was
// never carried.
func plant() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for url, sql := range map[string]string{
		os.Getenv("TARGET_URL"): "DELETE FROM ledger.entry WHERE (client, seq) = (SELECT client, seq FROM ledger.entry ORDER BY seq, client LIMIT 1)",
		os.Getenv("SOURCE_URL"): `BEGIN READ WRITE; ALTER TABLE shop.product DISABLE TRIGGER USER;
			INSERT INTO shop.product (title, net) VALUES ('planted', 1); ALTER TABLE shop.product ENABLE TRIGGER USER; COMMIT`,
	} {
		conn, err := pgx.Connect(ctx, url)
		if err != nil {
			return err
		}
		_, err = conn.PgConn().Exec(ctx, sql).ReadAll()
		if closeErr := conn.Close(ctx); err == nil {
			err = closeErr
		}
		if err != nil {
			return err
		}
	}
	return nil
}
