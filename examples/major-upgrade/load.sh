#!/bin/bash
# Loads every row by hand, after `pgrunbook apply --until capture`. The dump's snapshot must be
# younger than the capture, and it is: it begins now.
#
# The target's gate is closed so that nobody writes there by mistake. A session that carries the
# run's mark passes it; session_replication_role keeps triggers and foreign keys quiet.
set -euo pipefail
mark=$(psql -XAt -d "$TARGET_URL" -c "SELECT mark FROM pgrunbook.run WHERE state = 'active'")
pg_dump --data-only --exclude-schema=pgrunbook -d "$SOURCE_URL" |
  PGOPTIONS="-c session_replication_role=replica -c pgrunbook.mark=$mark" \
    psql -Xq --single-transaction -v ON_ERROR_STOP=1 -o /dev/null -d "$TARGET_URL"
