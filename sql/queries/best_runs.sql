-- The best systems of every dataset (the files that interactions were ingested from), with their intervals.
-- $metric: recall, ndcg, mrr, map, hit_rate or precision
-- $k: the cut-off
-- empty: no run has "$metric" at $k, over all users and with ties as expected
-- try: sluice sql "SELECT DISTINCT metric, k FROM outputs('score_ranking')" names what is there
WITH
datasets AS (
  SELECT s.run, string_agg(DISTINCT l.file, ', ' ORDER BY l.file) AS dataset
  FROM sys.stages AS s
  JOIN sys.lineage AS l ON l.key = s.key AND l.file IS NOT NULL AND l.operator = 'ingest_interactions'
  GROUP BY s.run
),
scores AS (
  SELECT key, value, low, high, users
  FROM outputs('score_ranking')
  WHERE metric = $metric AND k = CAST($k AS BIGINT) AND slice = 'all' AND ties = 'expected'
),
-- A key that several runs share counts once, for the first of them.
systems AS (
  SELECT coalesce(d.dataset, 'no file: made by ' || r.pipeline) AS dataset, r.pipeline, min(s.run) AS run, s.stage, o.value, o.low, o.high, o.users
  FROM (SELECT DISTINCT key, value, low, high, users FROM scores) AS o
  JOIN sys.stages AS s ON s.key = o.key
  JOIN sys.runs AS r ON r.run = s.run
  LEFT JOIN datasets AS d ON d.run = s.run
  GROUP BY d.dataset, r.pipeline, s.stage, s.key, o.value, o.low, o.high, o.users
)
SELECT dataset, place, value, low, high, users, pipeline, stage, run FROM (
  SELECT *, row_number() OVER (PARTITION BY dataset ORDER BY value DESC, run, stage) AS place FROM systems
) AS ranked
WHERE place <= 10
ORDER BY dataset, place
