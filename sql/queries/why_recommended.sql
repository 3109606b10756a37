-- Why TIGER recommends these items to a user: from the metric over the beam and its codes to training rows and raw lines.
-- $user: a user of the dataset
-- empty: user "$user" has no recommendations in this run
-- try: sluice sql "SELECT user_id FROM outputs('generate_tiger') WHERE here LIMIT 10" names users that have some
WITH
ids AS (
  SELECT item_id, semantic_id AS codes FROM outputs('quantize_*') WHERE here
),
titles AS (
  SELECT item_id, max(title) AS title FROM outputs('join_items') WHERE here GROUP BY item_id
),
-- The raw reviews: the file and the line are in `position`.
raw AS (
  SELECT r.user_id, r.item_id, r.timestamp, f.file, r.position & 1099511627775 AS line
  FROM outputs('ingest_interactions') AS r
  JOIN (
    SELECT key, file, row_number() OVER (PARTITION BY key ORDER BY file) - 1 AS number
    FROM sys.lineage WHERE file IS NOT NULL
  ) AS f ON f.key = r.key AND f.number = r.position >> 40
  WHERE r.here
),
-- The history that the model read, oldest first.
history AS (
  SELECT place, item_id FROM (
    SELECT unnest(sequence) AS item_id, unnest(range(1, CAST(array_length(sequence) AS BIGINT) + 1)) AS place
    FROM outputs('split_leave_one_out', 'test') WHERE here AND user_id = $user
  ) AS h
),
last AS (
  SELECT h.item_id, i.codes FROM history AS h JOIN ids AS i ON i.item_id = h.item_id ORDER BY h.place DESC LIMIT 1
),
-- Of several lists the one whose stage comes first by name.
chosen AS (
  SELECT stage, key FROM outputs('generate_tiger') WHERE here AND user_id = $user ORDER BY stage LIMIT 1
),
beam AS (
  SELECT b.rank, b.item_id, b.score
  FROM outputs('generate_tiger') AS b JOIN chosen AS c ON c.stage = b.stage
  WHERE b.here AND b.user_id = $user AND b.rank <= 10
),
scored AS (
  SELECT c.stage, s.target, s.rank, s.recall_10, s.ndcg_10
  FROM outputs('score_ranking', 'per_user') AS s
  JOIN sys.lineage AS l ON l.key = s.key AND l.port = 'ranked'
  JOIN chosen AS c ON c.key = l.from_key
  WHERE s.here AND s.user_id = $user ORDER BY s.stage LIMIT 1
),
-- Training samples whose target is a recommended item, and those of them that had the user's last item just before.
samples AS (
  SELECT b.item_id, count(*) AS trained,
         sum(CASE WHEN array_to_string(t.before, ' ') = array_to_string(l.codes, ' ') THEN 1 ELSE 0 END) AS after_last
  FROM (
    SELECT target, array_slice(sequence, 0 - CAST(array_length(target) AS BIGINT), -1) AS before
    FROM outputs('tokenize_sequences') WHERE here
  ) AS t
  JOIN ids AS i ON array_to_string(i.codes, ' ') = array_to_string(t.target, ' ')
  JOIN beam AS b ON b.item_id = i.item_id
  CROSS JOIN last AS l
  GROUP BY b.item_id
),
steps AS (
  SELECT 1 AS step, 'metric' AS what, CAST(rank AS BIGINT) AS place, target AS item_id,
         'held out; expected of ' || stage || ': recall@10 ' || recall_10 || ', ndcg@10 ' || round(ndcg_10, 4) AS evidence
  FROM scored
  UNION ALL
  SELECT 2, 'recommended', CAST(b.rank AS BIGINT), b.item_id,
         'log probability ' || round(b.score, 3) || '; target of ' || coalesce(s.trained, 0) || ' training samples, '
         || coalesce(s.after_last, 0) || ' right after the last item'
  FROM beam AS b LEFT JOIN samples AS s ON s.item_id = b.item_id
  UNION ALL
  SELECT 3, 'history', h.place, h.item_id, coalesce(r.file || ':' || r.line, 'no raw line')
  FROM history AS h LEFT JOIN raw AS r ON r.user_id = $user AND r.item_id = h.item_id
  UNION ALL
  -- Who else had a recommended item after the user's last one: the first lines of each.
  SELECT 4, 'seen with', place, item_id, evidence FROM (
    SELECT b.item_id, row_number() OVER (PARTITION BY b.item_id ORDER BY other.file, other.line) AS place,
           'user ' || other.user_id || ' at ' || other.file || ':' || other.line AS evidence
    FROM beam AS b
    JOIN raw AS other ON other.item_id = b.item_id
    JOIN raw AS same ON same.user_id = other.user_id
    JOIN last AS l ON l.item_id = same.item_id
    WHERE other.user_id <> $user
  ) AS w WHERE place <= 2
)
SELECT s.step, s.what, s.place, s.item_id, t.title, array_to_string(i.codes, '-') AS codes, s.evidence
FROM steps AS s
LEFT JOIN ids AS i ON i.item_id = s.item_id
LEFT JOIN titles AS t ON t.item_id = s.item_id
ORDER BY s.step, s.place, s.item_id
