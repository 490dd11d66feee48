package dump

// inventorySQL gives class, oid, relation, kind, name and digest of every definition, and whether it is a check that
// is NOT VALID. quoted(x) is x as pgx.Identifier writes it. Definitions have qualified names because search_path is pg_catalog in our
// sessions. A table's columns are sorted by name:
// their order may differ on two servers that hold the same. Before 12 the oid is no column that * gives.
const inventorySQL = `
WITH ns AS (
  SELECT n.oid, quoted(n.nspname) AS name FROM pg_namespace n WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'pgrunbook')
), ext AS (
  SELECT classid, objid FROM pg_depend WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
), rel AS (
  SELECT c.oid, c.relkind::text AS kind, c.relispartition AS part, c.relpersistence::text || ' ' || c.relreplident::text || ' ' || c.relrowsecurity || c.relforcerowsecurity || ' ' || coalesce(c.reloptions::text, '') AS options,
         ns.name || '.' || quoted(c.relname) AS name, c.relowner, c.relacl, c.reltype, ns.name AS nsp
    FROM pg_class c JOIN ns ON ns.oid = c.relnamespace
   WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c') AND NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_class'::regclass AND objid = c.oid)
     AND NOT (c.relkind = 'c' AND EXISTS (SELECT FROM ext WHERE classid = 'pg_type'::regclass AND objid = c.reltype))
), fn AS (
  SELECT p.oid, p.{kindcolumn}, p.prorettype, p.proowner, p.proacl, ns.name || '.' || quoted(p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')' AS name
    FROM pg_proc p JOIN ns ON ns.oid = p.pronamespace WHERE NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_proc'::regclass AND objid = p.oid)
), ty AS (
  SELECT t.oid, t.typtype, t.typbasetype, t.typtypmod, t.typnotnull, t.typdefault, ns.name || '.' || quoted(t.typname) AS name
    FROM pg_type t JOIN ns ON ns.oid = t.typnamespace WHERE t.typtype IN ('e', 'd', 'r') AND NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_type'::regclass AND objid = t.oid)
), con AS (
  SELECT con.oid, con.conrelid, con.contypid, con.contype::text AS contype, con.conname, con.conindid, pg_get_constraintdef(con.oid) AS def, con.contype = 'c' AND con.coninhcount = 0 AS own_check
    FROM pg_constraint con JOIN ns ON ns.oid = con.connamespace WHERE con.contype IN ('c', 'p', 'u', 'x', 'f') AND (con.conislocal OR con.conrelid = 0) AND {conparent}
), item (classid, oid, rel, kind, name, def) AS (
  SELECT 'pg_namespace'::regclass::oid, oid, 0::oid, 'schema', name, '' FROM ns WHERE NOT EXISTS (SELECT FROM ext WHERE classid = 'pg_namespace'::regclass AND objid = ns.oid)
  UNION ALL SELECT CASE rel.kind WHEN 'c' THEN 'pg_type'::regclass ELSE 'pg_class'::regclass END, CASE rel.kind WHEN 'c' THEN rel.reltype ELSE rel.oid END, rel.oid, -- as an archive names them
      CASE rel.kind WHEN 'c' THEN 'type' ELSE 'table' END, rel.name, rel.kind || coalesce(pg_get_partkeydef(rel.oid), '') || (
      SELECT coalesce(string_agg(concat_ws(' ', quoted(a.attname), format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, {generated}, nullif(a.collation_name, ''), pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY a.attname), '')
        FROM (SELECT a.*, CASE WHEN a.attcollation <> (SELECT typcollation FROM pg_type WHERE oid = a.atttypid) THEN (SELECT collname::text FROM pg_collation WHERE oid = a.attcollation) ELSE '' END AS collation_name
                FROM pg_attribute a) a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
       WHERE a.attrelid = rel.oid AND a.attnum > 0 AND NOT a.attisdropped) || coalesce((
      SELECT ' inherits ' || string_agg(up.name, ', ' ORDER BY up.name) FROM pg_inherits h JOIN rel up ON up.oid = h.inhparent WHERE h.inhrelid = rel.oid), '')
    FROM rel WHERE rel.kind IN ('r', 'p', 'f', 'c') AND NOT rel.part
  UNION ALL SELECT 'pg_class'::regclass, rel.oid, rel.oid, 'partition', rel.name, up.nsp || ' ' || up.name || coalesce(pg_get_partkeydef(rel.oid), '') || pg_get_expr(c.relpartbound, c.oid)
    FROM rel JOIN pg_class c ON c.oid = rel.oid JOIN pg_inherits h ON h.inhrelid = rel.oid JOIN rel up ON up.oid = h.inhparent WHERE rel.part
  UNION ALL SELECT 'pg_class'::regclass, rel.oid, rel.oid, CASE rel.kind WHEN 'v' THEN 'view' ELSE 'materialized view' END, rel.name, pg_get_viewdef(rel.oid) FROM rel WHERE rel.kind IN ('v', 'm')
  UNION ALL SELECT 'pg_class'::regclass, rel.oid, rel.oid, 'sequence', rel.name, concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
    FROM rel JOIN pg_sequence s ON s.seqrelid = rel.oid
  UNION ALL SELECT 'pg_class'::regclass, rel.oid, rel.oid, 'options', rel.name, concat_ws(' ', rel.options,
      (SELECT spcname FROM pg_tablespace s WHERE s.oid = c.reltablespace), (SELECT nullif(amname, 'heap') FROM pg_am m WHERE m.oid = c.relam AND c.relkind <> 'S'),
      (SELECT string_agg(concat_ws(' ', quoted(x.relname), i.indisclustered, i.indisreplident), ', ' ORDER BY x.relname) FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = c.oid AND (i.indisclustered OR i.indisreplident)),
      (SELECT string_agg(concat_ws(' ', quoted(a.attname), CASE WHEN a.attstorage <> y.typstorage THEN a.attstorage END, {compression}, nullif(a.attstattarget, -1), a.attoptions::text, a.attfdwoptions::text), ', ' ORDER BY a.attname) FROM pg_attribute a JOIN pg_type y ON y.oid = a.atttypid
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND (a.attstorage <> y.typstorage OR {compression} <> '' OR a.attstattarget <> -1 OR a.attoptions IS NOT NULL OR a.attfdwoptions IS NOT NULL)),
      (SELECT string_agg(concat_ws(' ', t.name, quoted(a.attname)), ', ') FROM pg_depend d JOIN rel t ON t.oid = d.refobjid JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
        WHERE c.relkind = 'S' AND d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')),
      (SELECT f.ftoptions::text FROM pg_foreign_table f WHERE f.ftrelid = c.oid))
    FROM rel JOIN pg_class c ON c.oid = rel.oid WHERE rel.kind <> 'c' AND NOT rel.part
  UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, 'function', p.name, pg_get_functiondef(p.oid) FROM fn p WHERE {prokind}
  UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, 'object', 'aggregate ' || p.name, concat_ws(' ', g.aggtransfn, g.aggfinalfn, g.agginitval, format_type(p.prorettype, NULL))
    FROM fn p JOIN pg_aggregate g ON g.aggfnoid = p.oid WHERE {aggregate}
  UNION ALL SELECT 'pg_type'::regclass, oid, 0, 'enum', name, (SELECT string_agg(quote_literal(e.enumlabel), ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = ty.oid) FROM ty WHERE typtype = 'e'
  UNION ALL SELECT 'pg_type'::regclass, oid, 0, 'domain', name, concat_ws(' ', format_type(typbasetype, typtypmod), typnotnull, typdefault) FROM ty WHERE typtype = 'd'
  UNION ALL SELECT 'pg_type'::regclass, oid, 0, 'type', name, (SELECT format_type(r.rngsubtype, NULL) FROM pg_range r WHERE r.rngtypid = ty.oid) FROM ty WHERE typtype = 'r'
  UNION ALL SELECT 'pg_constraint'::regclass, con.oid, con.conrelid, CASE con.contype WHEN 'c' THEN 'check constraint' WHEN 'f' THEN 'foreign key' ELSE 'constraint' END, quoted(con.conname) || chr(1) || rel.name, con.def
    FROM con JOIN rel ON rel.oid = con.conrelid
  UNION ALL SELECT 'pg_constraint'::regclass, con.oid, 0, 'domain constraint', quoted(con.conname) || chr(1) || ty.name, con.def FROM con JOIN ty ON ty.oid = con.contypid
  UNION ALL SELECT 'pg_class'::regclass, x.oid, rel.oid, 'index', rel.nsp || '.' || quoted(x.relname), pg_get_indexdef(x.oid)
    FROM pg_index i JOIN rel ON rel.oid = i.indrelid JOIN pg_class x ON x.oid = i.indexrelid
   WHERE i.indisvalid AND NOT x.relispartition AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = x.oid AND c.contype IN ('p', 'u', 'x'))
     AND NOT EXISTS (SELECT FROM pg_inherits h WHERE h.inhrelid = x.oid)
  UNION ALL SELECT 'pg_trigger'::regclass, t.oid, rel.oid, 'trigger', quoted(t.tgname) || chr(1) || rel.name, pg_get_triggerdef(t.oid)
    FROM pg_trigger t JOIN rel ON rel.oid = t.tgrelid JOIN pg_proc f ON f.oid = t.tgfoid WHERE NOT t.tgisinternal AND {tgparent} AND f.pronamespace::regnamespace::text <> 'pgrunbook'
  UNION ALL SELECT 'pg_rewrite'::regclass, r.oid, rel.oid, 'rule', quoted(r.rulename) || chr(1) || rel.name, pg_get_ruledef(r.oid) FROM pg_rewrite r JOIN rel ON rel.oid = r.ev_class WHERE r.rulename <> '_RETURN'
  UNION ALL SELECT 'pg_policy'::regclass, p.oid, rel.oid, 'policy', quoted(p.polname) || chr(1) || rel.name, concat_ws(' ', p.polcmd, p.polpermissive, pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid),
      (SELECT string_agg(quoted(r.rolname), ', ' ORDER BY r.rolname) FROM pg_roles r WHERE r.oid = ANY (p.polroles))) -- nothing for PUBLIC
    FROM pg_policy p JOIN rel ON rel.oid = p.polrelid
  UNION ALL SELECT 'pg_statistic_ext'::regclass, s.oid, rel.oid, 'statistics', ns.name || '.' || quoted(s.stxname), concat_ws(' ', pg_get_statisticsobjdef(s.oid), {stattarget}) FROM pg_statistic_ext s JOIN rel ON rel.oid = s.stxrelid JOIN ns ON ns.oid = s.stxnamespace
  UNION ALL SELECT 'pg_extension'::regclass, oid, 0, 'extension', quoted(extname), extversion FROM pg_extension
  UNION ALL SELECT o.classid, o.oid, 0, 'object', i.type || ' ' || i.identity, ''
    FROM (SELECT 'pg_operator'::regclass::oid AS classid, o.oid FROM pg_operator o JOIN ns ON ns.oid = o.oprnamespace
          UNION ALL SELECT 'pg_opclass'::regclass, o.oid FROM pg_opclass o JOIN ns ON ns.oid = o.opcnamespace
          UNION ALL SELECT 'pg_opfamily'::regclass, o.oid FROM pg_opfamily o JOIN ns ON ns.oid = o.opfnamespace
          UNION ALL SELECT 'pg_collation'::regclass, o.oid FROM pg_collation o JOIN ns ON ns.oid = o.collnamespace
          UNION ALL SELECT 'pg_conversion'::regclass, o.oid FROM pg_conversion o JOIN ns ON ns.oid = o.connamespace
          UNION ALL SELECT 'pg_ts_config'::regclass, o.oid FROM pg_ts_config o JOIN ns ON ns.oid = o.cfgnamespace
          UNION ALL SELECT 'pg_ts_dict'::regclass, o.oid FROM pg_ts_dict o JOIN ns ON ns.oid = o.dictnamespace
          UNION ALL SELECT 'pg_ts_parser'::regclass, o.oid FROM pg_ts_parser o JOIN ns ON ns.oid = o.prsnamespace
          UNION ALL SELECT 'pg_ts_template'::regclass, o.oid FROM pg_ts_template o JOIN ns ON ns.oid = o.tmplnamespace
          UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast WHERE oid >= 16384
          UNION ALL SELECT 'pg_language'::regclass, oid FROM pg_language WHERE oid >= 16384
          UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_foreign_data_wrapper
          UNION ALL SELECT 'pg_foreign_server'::regclass, oid FROM pg_foreign_server
          UNION ALL SELECT 'pg_event_trigger'::regclass, oid FROM pg_event_trigger) o
    CROSS JOIN LATERAL pg_identify_object(o.classid, o.oid, 0) i WHERE NOT EXISTS (SELECT FROM ext WHERE ext.classid = o.classid AND ext.objid = o.oid)
  UNION ALL SELECT 'pg_class'::regclass, rel.oid, rel.oid, 'owner', rel.name, pg_get_userbyid(rel.relowner)::text FROM rel WHERE NOT rel.part
  UNION ALL SELECT 'pg_namespace'::regclass, n.oid, 0, 'owner', ns.name, pg_get_userbyid(n.nspowner)::text FROM pg_namespace n JOIN ns ON ns.oid = n.oid
  UNION ALL SELECT 'pg_type'::regclass, y.oid, 0, 'owner', ty.name, pg_get_userbyid(y.typowner)::text FROM ty JOIN pg_type y ON y.oid = ty.oid
  UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, 'owner', p.name, pg_get_userbyid(p.proowner)::text FROM fn p
  UNION ALL SELECT 'pg_class'::regclass, rel.oid, rel.oid, 'grant', rel.name, coalesce(rel.relacl::text, '') || coalesce((SELECT string_agg(quoted(a.attname) || a.attacl::text, ' ' ORDER BY a.attname) FROM pg_attribute a WHERE a.attrelid = rel.oid AND a.attacl IS NOT NULL), '')
    FROM rel WHERE NOT rel.part
  UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, 'grant', p.name, coalesce(p.proacl::text, '') FROM fn p
  UNION ALL SELECT 'pg_namespace'::regclass, n.oid, 0, 'grant', ns.name, coalesce(n.nspacl::text, '') FROM pg_namespace n JOIN ns ON ns.oid = n.oid
  UNION ALL SELECT 'pg_type'::regclass, y.oid, 0, 'grant', ty.name, coalesce(y.typacl::text, '') FROM ty JOIN pg_type y ON y.oid = ty.oid
  UNION ALL SELECT 'pg_class'::regclass, rel.oid, rel.oid, 'comment', rel.name || coalesce('.' || (SELECT quoted(a.attname) FROM pg_attribute a WHERE a.attrelid = rel.oid AND a.attnum = d.objsubid AND d.objsubid > 0), ''), d.description
    FROM pg_description d JOIN rel ON rel.oid = d.objoid WHERE d.classoid = 'pg_class'::regclass
  UNION ALL SELECT 'pg_proc'::regclass, p.oid, 0, 'comment', p.name, d.description FROM pg_description d JOIN fn p ON p.oid = d.objoid WHERE d.classoid = 'pg_proc'::regclass
  UNION ALL SELECT 'pg_db_role_setting'::regclass, s.setrole, 0, 'setting', coalesce('of role ' || r.rolname, 'of the database') || ': ' || split_part(c, '=', 1), c
    FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) c LEFT JOIN pg_roles r ON r.oid = s.setrole
   WHERE s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) AND split_part(c, '=', 1) <> 'default_transaction_read_only'
)
SELECT classid, oid, rel, kind, name, md5(coalesce(def, '')), classid = 'pg_constraint'::regclass AND oid IN (SELECT con.oid FROM con WHERE con.own_check AND con.def LIKE '% NOT VALID') FROM item`
