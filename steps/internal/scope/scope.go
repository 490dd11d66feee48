package scope

// Scope is everything that one run carries. It is made once, stored in the accepted plan and
// read back on resume, so that every process of a run sees the same tables under the same ids.
type Scope struct {
	Tables     []Table    `json:"tables"`
	Sequences  []Sequence `json:"sequences"`
	NotCarried []string   `json:"not_carried,omitempty"` // one sentence each
	// Left are tables of the plan that were dropped on the source since; LastID is the highest ID of those
	// that left: no table gets one a second time.
	Left   []Table `json:"left,omitempty"`
	LastID int32   `json:"last_id,omitempty"`
	// ExcludePatterns name what pg_dump leaves out, as --exclude-table and --exclude-schema arguments.
	ExcludedTables  []Name   `json:"excluded_tables,omitempty"`
	ExcludedSchemas []string `json:"excluded_schemas,omitempty"`
	// Helpers are the functions that set session_replication_role for this run, on either side: neither is
	// carried over the other.
	Helpers []Name `json:"helpers,omitempty"`
	// ReadOnlyDefault is what the source's owner set default_transaction_read_only to for the
	// database; empty where he did not. The way back gives it back.
	ReadOnlyDefault string `json:"read_only_default,omitempty"`
}

// Name is a schema-qualified name, unquoted.
type Name struct {
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// Table is one carried relation: a plain table or the root of a partition tree. It has the same
// name on both sides; oids differ, so both sides know it by ID.
type Table struct {
	ID int32 `json:"id"` // 1, 2, 3... in the order of the scope; the key of deltas and journal rows
	Name
	Kind    Kind     `json:"kind"`
	OID     uint32   `json:"oid"`               // on the source
	Members []Member `json:"members,omitempty"` // every other relation of a partition tree, leaves and middles, in order of name
	Columns []Column `json:"columns"`           // in attnum order, without dropped ones
	Key     *Key     `json:"key,omitempty"`     // nil: a table without a key

	Data     Data     `json:"data"`
	Identity Identity `json:"identity"`
	Capture  Capture  `json:"capture"`
	Method   Method   `json:"method"`
	Chunk    int64    `json:"chunk"`            // bytes
	Chunks   int64    `json:"chunks,omitempty"` // pieces of the load, by the sizes as they are; 0: it is not loaded in chunks

	Rows       int64 `json:"rows"`                 // estimate from pg_class
	Unanalyzed bool  `json:"unanalyzed,omitempty"` // some of its rows were never analyzed: Rows lacks them
	Bytes      int64 `json:"bytes"`                // heap and TOAST, all members
	Blocks     int64 `json:"blocks,omitempty"`     // of its own heap
	IndexBytes int64 `json:"index_bytes"`

	Inherits bool `json:"inherits,omitempty"` // has legacy inheritance parents or children
	Unlogged bool `json:"unlogged,omitempty"`
	// Recaptured says that row triggers took the place of statement triggers, since it came to inherit.
	Recaptured bool   `json:"recaptured,omitempty"`
	Joined     bool   `json:"joined,omitempty"` // it was made while the run was under way
	Why        string `json:"why,omitempty"`    // why this method, key and capture, for the plan
}

// Kind of relation.
type Kind string

// A partitioned table is carried by its root.
const (
	Plain       Kind = "table"
	Partitioned Kind = "partitioned"
)

// Member is one relation below a partition root.
type Member struct {
	OID uint32 `json:"oid"`
	Name
	Leaf    bool  `json:"leaf"`
	Foreign bool  `json:"foreign,omitempty"`
	Bytes   int64 `json:"bytes,omitempty"`
	Blocks  int64 `json:"blocks,omitempty"`
	Rows    int64 `json:"rows,omitempty"`
}

// Column of a carried table.
type Column struct {
	Num       int16  `json:"num"`
	Name      string `json:"name"`
	Type      string `json:"type"`     // format_type with modifier, schema-qualified where not in pg_catalog
	TypeOID   uint32 `json:"type_oid"` // on the source
	NotNull   bool   `json:"not_null,omitempty"`
	Generated bool   `json:"generated,omitempty"`  // left out of every column list
	Identity  string `json:"identity,omitempty"`   // "a" always, "d" by default, as in pg_attribute
	Binary    bool   `json:"binary,omitempty"`     // the type's binary form is portable: built in and no reg*
	FloatSend string `json:"float_send,omitempty"` // what gives its bytes, where its text holds floats
}

// Key is the unique index that identifies rows: immediate, valid, total, over not-null columns,
// on the root.
type Key struct {
	Index      Name        `json:"index"`
	Constraint string      `json:"constraint,omitempty"` // name, where the index belongs to one
	Primary    bool        `json:"primary"`
	Columns    []KeyColumn `json:"columns"` // in index order
	Shape      string      `json:"shape"`   // names the delta table: keys of one shape share one
}

// KeyColumn is one column of a key with what compares it.
type KeyColumn struct {
	Name      string `json:"name"`
	DeltaType string `json:"delta_type"`          // base type without modifier, integers as pg_catalog.int8
	Collation string `json:"collation,omitempty"` // quoted and qualified, where the type has one
	Operator  string `json:"operator"`            // OPERATOR(schema.=), the index opclass's equality
}

// Data says when a table's rows move.
type Data string

// Live tables are loaded while the application writes; at_freeze tables inside the freeze; none
// are created empty.
const (
	Live     Data = "live"
	AtFreeze Data = "at_freeze"
	NoData   Data = "none"
)

// Identity says what makes a row the same row on both sides.
type Identity string

// The three ways to follow a table.
const (
	ByKey      Identity = "key"
	AppendOnly Identity = "append_only"
	FullRow    Identity = "full_row"
)

// Capture says which triggers record changes.
type Capture string

// Statement triggers with transition tables, row triggers per leaf, or none.
const (
	Statement Capture = "statement"
	Row       Capture = "row"
	NoCapture Capture = "none"
)

// Method of the load.
type Method string

// The methods of design section 2.
const (
	Stream   Method = "stream"
	PgDump   Method = "pg_dump"
	External Method = "external"
)

// Sequence is one carried sequence. It has the same name on both sides.
type Sequence struct {
	OID uint32 `json:"oid"` // on the source
	Name
	OwnerTable  *Name  `json:"owner_table,omitempty"`
	OwnerColumn string `json:"owner_column,omitempty"`
	Increment   int64  `json:"increment"`
	Min         int64  `json:"min"`
	Max         int64  `json:"max"`
	Cycle       bool   `json:"cycle,omitempty"`
	Cache       int64  `json:"cache"`
}

// Run is what the protocol packages must know of the run.
type Run struct {
	ID          string // short, in application_name and comments
	Mark        string // random; sessions that carry it pass our triggers
	Epoch       int64  // of the runner that holds the run
	GateKey     int64  // K, random, 63 bit, per run
	Message     string // what a closed gate raises
	ClosedError string // SQLSTATE that a closed gate raises
	Elsewhere   string // address of the other side, without a password, for who is refused; empty: not said
}
