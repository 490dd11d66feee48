-- The journal, version 2. Everything here is removed by finish.

CREATE TABLE pgrunbook.meta (
  one          boolean PRIMARY KEY DEFAULT true CHECK (one),
  version      integer NOT NULL,
  tool_version text NOT NULL, -- that made or last migrated it
  created      timestamptz NOT NULL DEFAULT pg_catalog.now()
);
COMMENT ON TABLE pgrunbook.meta IS 'pgrunbook journal';

-- Chunks in flight hold their run's row FOR SHARE: nothing but a take-over and the end may change it.
CREATE TABLE pgrunbook.run (
  id              text PRIMARY KEY,
  name            text NOT NULL,
  epoch           bigint NOT NULL,
  state           text NOT NULL CHECK (state IN ('active', 'finished', 'aborted')),
  plan            jsonb NOT NULL,
  plan_digest     text NOT NULL,
  source_identity jsonb NOT NULL,
  target_identity jsonb NOT NULL,
  tool_version    text NOT NULL,
  mark            text NOT NULL,
  gate_key        bigint NOT NULL,
  started         timestamptz NOT NULL DEFAULT pg_catalog.now(),
  ended           timestamptz
);
CREATE UNIQUE INDEX run_one_active ON pgrunbook.run ((true)) WHERE state = 'active';

CREATE TABLE pgrunbook.holder (
  run         text PRIMARY KEY REFERENCES pgrunbook.run ON DELETE CASCADE,
  epoch       bigint NOT NULL,
  host        text NOT NULL,
  pid         integer NOT NULL, -- of the runner's process
  os_user     text NOT NULL,
  application text NOT NULL,
  backend     integer NOT NULL, -- of the session that holds the lock
  since       timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  released    timestamptz
);

CREATE TABLE pgrunbook.step (
  run         text NOT NULL REFERENCES pgrunbook.run ON DELETE CASCADE,
  id          text NOT NULL,
  state       text NOT NULL CHECK (state IN ('running', 'done', 'failed')),
  fingerprint text NOT NULL,
  attempts    integer NOT NULL DEFAULT 1,
  started     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  ended       timestamptz,
  error       text,
  cursor      jsonb,
  PRIMARY KEY (run, id)
);

-- One chunk of work. Its row is locked by the transaction that does the work and marks it done.
CREATE TABLE pgrunbook.item (
  run   text NOT NULL REFERENCES pgrunbook.run ON DELETE CASCADE,
  step  text NOT NULL,
  tbl   integer NOT NULL,
  no    integer NOT NULL,
  lo    text, -- null is open
  hi    text,
  size  bigint NOT NULL DEFAULT 0, -- bytes, estimated
  state text NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done')),
  rows  bigint NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0,
  ended timestamptz,
  PRIMARY KEY (run, step, tbl, no)
) WITH (fillfactor = 70);
CREATE INDEX item_pending ON pgrunbook.item (run, step, tbl, no) WHERE state = 'pending';

CREATE TABLE pgrunbook.table_state (
  run        text NOT NULL REFERENCES pgrunbook.run ON DELETE CASCADE,
  tbl        integer NOT NULL,
  state      text NOT NULL CHECK (state IN ('loading', 'scrubbed', 'following')),
  generation integer NOT NULL, -- of the load: a rewritten table starts over in the next one
  filenodes  jsonb NOT NULL DEFAULT '{}',
  chunks     integer NOT NULL DEFAULT 0, -- that its load was cut into; 0 is none yet, or a load from before version 2
  PRIMARY KEY (run, tbl)
);

CREATE TABLE pgrunbook.approval (
  run         text NOT NULL REFERENCES pgrunbook.run ON DELETE CASCADE,
  n           bigint GENERATED ALWAYS AS IDENTITY,
  name        text NOT NULL,
  given_by    text NOT NULL,
  at          timestamptz NOT NULL,
  plan_digest text NOT NULL,
  recorded    timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(), -- by this server's clock, like flip.settled
  PRIMARY KEY (run, n)
);

-- The change of the write owner: decided before the two COMMITs, settled with the second.
CREATE TABLE pgrunbook.flip (
  run         text NOT NULL REFERENCES pgrunbook.run ON DELETE CASCADE,
  n           bigint GENERATED ALWAYS AS IDENTITY,
  epoch       bigint NOT NULL,
  from_side   text NOT NULL CHECK (from_side IN ('source', 'target')),
  to_side     text NOT NULL CHECK (to_side IN ('source', 'target') AND to_side <> from_side),
  decided     timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
  settled     timestamptz,
  outcome     text CHECK (outcome IN ('done', 'undone')),
  certificate jsonb,
  PRIMARY KEY (run, n)
);
CREATE UNIQUE INDEX flip_one_open ON pgrunbook.flip (run) WHERE settled IS NULL;

CREATE TABLE pgrunbook.owner (
  run   text PRIMARY KEY REFERENCES pgrunbook.run ON DELETE CASCADE,
  side  text NOT NULL CHECK (side IN ('source', 'target', 'unclear')),
  since timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

CREATE TABLE pgrunbook.control (
  run        text PRIMARY KEY REFERENCES pgrunbook.run ON DELETE CASCADE,
  paused     boolean NOT NULL DEFAULT false,
  workers    integer NOT NULL DEFAULT 0, -- 0 is the plan's number
  settings   jsonb NOT NULL DEFAULT '{}',
  changed_by text NOT NULL DEFAULT '',
  at         timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp()
);

CREATE TABLE pgrunbook.event (
  run  text NOT NULL REFERENCES pgrunbook.run ON DELETE CASCADE,
  n    bigint GENERATED ALWAYS AS IDENTITY,
  at   timestamptz NOT NULL,
  kind text NOT NULL,
  step text NOT NULL DEFAULT '',
  data jsonb NOT NULL,
  PRIMARY KEY (run, n)
);
