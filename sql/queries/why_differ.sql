-- Why two runs differ: stages whose keys are not the same, the roots of it first (those that read the same and are another).
-- $old: the one run
-- $new: the other run
-- empty: no difference between "$old" and "$new", or no run of that full name
-- try: sluice sql "SELECT run, pipeline, state FROM sys.runs ORDER BY run DESC LIMIT 10" names the newest runs
WITH
pairs AS (
  SELECT coalesce(n.stage, o.stage) AS stage, o.key AS old_key, n.key AS new_key
  FROM (SELECT stage, key FROM sys.stages WHERE run = $new AND key IS NOT NULL) AS n
  FULL JOIN (SELECT stage, key FROM sys.stages WHERE run = $old AND key IS NOT NULL) AS o ON o.stage = n.stage
  WHERE o.key IS DISTINCT FROM n.key
),
-- What a key read, as one text.
inputs AS (
  SELECT key, string_agg(DISTINCT port || ' ' || digest, ' ' ORDER BY port || ' ' || digest) AS artifacts
  FROM sys.lineage GROUP BY key
),
sources AS (
  SELECT key, string_agg(DISTINCT file || ' ' || digest, ' ' ORDER BY file || ' ' || digest) AS files
  FROM sys.lineage GROUP BY key
)
SELECT p.stage,
       CASE
         WHEN p.old_key IS NULL THEN 'is new'
         WHEN p.new_key IS NULL THEN 'is gone'
         WHEN i.artifacts IS DISTINCT FROM j.artifacts THEN 'what it reads changed'
         WHEN f.files IS DISTINCT FROM g.files THEN 'a file changed'
         WHEN a.operator <> b.operator THEN 'operator ' || a.operator || ' -> ' || b.operator
         WHEN a.version <> b.version THEN 'operator version ' || a.version || ' -> ' || b.version
         WHEN a.seed IS DISTINCT FROM b.seed THEN 'seed ' || coalesce(a.seed, 0) || ' -> ' || coalesce(b.seed, 0)
         ELSE 'config'
       END AS why,
       i.artifacts IS NOT DISTINCT FROM j.artifacts AS root,
       CASE WHEN a.config IS DISTINCT FROM b.config THEN a.config END AS old_config,
       CASE WHEN a.config IS DISTINCT FROM b.config THEN b.config END AS new_config
FROM pairs AS p
LEFT JOIN sys.keys AS a ON a.key = p.old_key
LEFT JOIN sys.keys AS b ON b.key = p.new_key
LEFT JOIN inputs AS i ON i.key = p.old_key
LEFT JOIN inputs AS j ON j.key = p.new_key
LEFT JOIN sources AS f ON f.key = p.old_key
LEFT JOIN sources AS g ON g.key = p.new_key
ORDER BY root DESC, p.stage
