-- The scorers and semantic-id tables of pipelines/baselines_beauty.yaml, recomputed in plain SQL from what they were computed
-- from, beside the metrics that the pipeline stored. A row a figure; `difference` is to be nothing but rounding.
WITH
-- What a hit at a rank is worth for NDCG with one target, added up: worth(n) = 1/log2(2) + ... + 1/log2(n + 1).
worth AS (
  SELECT n, sum(CASE WHEN n = 0 THEN 0.0 ELSE 1 / log2(n + 1) END) OVER (ORDER BY n) AS total
  FROM (SELECT unnest(range(0, 11)) AS n) AS r
),
cutoffs AS (SELECT unnest([5, 10]) AS k),
-- Scored in the order of the list: the place of the target in the ranked lists themselves. Users without a list score 0.
lists AS (
  SELECT 'popular_metrics' AS stage, user_id, item_id, rank FROM popular
  UNION ALL SELECT 'popular_unseen_metrics', user_id, item_id, rank FROM popular_unseen
  UNION ALL SELECT 'markov_metrics', user_id, item_id, rank FROM markov
),
listed AS (
  SELECT s.stage, t.user_id, l.rank
  FROM split.test AS t
  CROSS JOIN (SELECT DISTINCT stage FROM lists) AS s
  LEFT JOIN lists AS l ON l.stage = s.stage AND l.user_id = t.user_id AND l.item_id = t.target
),
-- Scored with ties: `better` items score more than the target, `tied` as much, itself included.
users AS (
  SELECT 'markov_metrics' AS stage, user_id, better, tied FROM markov_metrics.per_user
  UNION ALL SELECT 'markov_popular_metrics', user_id, better, tied FROM markov_popular_metrics.per_user
  UNION ALL SELECT 'markov_popular_unseen_metrics', user_id, better, tied FROM markov_popular_unseen_metrics.per_user
),
tied AS (
  SELECT u.stage, c.k, u.user_id,
         CASE WHEN u.better < c.k THEN (least(u.better + u.tied, c.k) - u.better) / CAST(u.tied AS DOUBLE) ELSE 0 END AS recall,
         CASE WHEN u.better < c.k THEN (upto.total - before.total) / u.tied ELSE 0 END AS ndcg,
         u.better < c.k AS best, CASE WHEN u.better < c.k THEN 1 / log2(u.better + 2) ELSE 0 END AS best_ndcg,
         u.better + u.tied <= c.k AS worst,
         CASE WHEN u.better + u.tied <= c.k THEN 1 / log2(u.better + u.tied + 1) ELSE 0 END AS worst_ndcg
  FROM users AS u
  CROSS JOIN cutoffs AS c
  LEFT JOIN worth AS before ON before.n = least(u.better, c.k)
  LEFT JOIN worth AS upto ON upto.n = least(u.better + u.tied, c.k)
),
scored AS (
  SELECT stage, 'listed' AS ties, k,
         sum(CASE WHEN rank <= k THEN 1.0 ELSE 0 END) AS hits,
         avg(CASE WHEN rank <= k THEN 1.0 ELSE 0 END) AS recall,
         avg(CASE WHEN rank <= k THEN 1 / log2(rank + 1) ELSE 0 END) AS ndcg
  FROM listed CROSS JOIN cutoffs GROUP BY stage, k
),
ties AS (
  SELECT stage, k, count(*) AS users,
         [sum(recall), sum(CAST(best AS DOUBLE)), sum(CAST(worst AS DOUBLE))] AS hits,
         [sum(ndcg), sum(best_ndcg), sum(worst_ndcg)] AS gains
  FROM tied GROUP BY stage, k
),
-- Results are turned into rows by unnest: named twice, a query is run twice.
scores AS (
  SELECT stage, 'listed' AS ties, k, unnest(['hits', 'recall', 'ndcg']) AS figure, unnest([hits, recall, ndcg]) AS value
  FROM scored
  UNION ALL
  SELECT stage, ties, k, unnest(['hits', 'recall', 'ndcg']), unnest([hits, hits / users, gains / users])
  FROM (
    SELECT stage, k, users, unnest(['expected', 'optimistic', 'pessimistic']) AS ties, unnest(hits) AS hits,
           unnest(gains) AS gains
    FROM ties
  ) AS t
),
stored_scores AS (
  SELECT 'popular_metrics' AS stage, * FROM popular_metrics.out
  UNION ALL SELECT 'popular_unseen_metrics', * FROM popular_unseen_metrics.out
  UNION ALL SELECT 'markov_metrics', * FROM markov_metrics.out
  UNION ALL SELECT 'markov_popular_metrics', * FROM markov_popular_metrics.out
  UNION ALL SELECT 'markov_popular_unseen_metrics', * FROM markov_popular_unseen_metrics.out
),
wanted (name, stage, ties) AS (VALUES
  ('popularity', 'popular_metrics', 'listed'),
  ('popularity, seen filtered', 'popular_unseen_metrics', 'listed'),
  ('Markov', 'markov_metrics', 'listed'),
  ('Markov, pessimistic ties', 'markov_metrics', 'pessimistic'),
  ('Markov, optimistic ties', 'markov_metrics', 'optimistic'),
  ('Markov, then popularity', 'markov_popular_metrics', 'expected'),
  ('Markov, then popularity, seen filtered', 'markov_popular_unseen_metrics', 'expected')
),
-- Semantic ids: one row an item and depth, with the codes up to that depth.
ids AS (
  SELECT 'letter' AS stage, item_id, semantic_id AS codes FROM letter
  UNION ALL SELECT 'office', item_id, semantic_id FROM office
),
prefixes AS (
  SELECT stage, item_id, depth, array_length(codes) AS levels,
         array_to_string(array_slice(codes, 1, depth), ' ') AS prefix, array_element(codes, depth) AS code
  FROM (SELECT stage, item_id, codes, unnest(range(1, CAST(array_length(codes) AS BIGINT) + 1)) AS depth FROM ids) AS d
),
buckets AS (SELECT stage, prefix, count(*) AS n FROM prefixes WHERE depth = levels GROUP BY stage, prefix),
sizes AS (SELECT stage, CAST(count(*) AS DOUBLE) AS items FROM ids GROUP BY stage),
codes AS (SELECT stage, depth, code, count(*) AS n FROM prefixes GROUP BY stage, depth, code),
diagnostics AS (
  SELECT stage, NULL AS level, 'items' AS fact, items AS value FROM sizes
  UNION ALL SELECT stage, NULL, 'distinct', count(*) FROM buckets GROUP BY stage
  UNION ALL SELECT b.stage, NULL, 'uniquely_identified', sum(CASE WHEN b.n = 1 THEN 1 ELSE 0 END) / max(s.items)
    FROM buckets AS b JOIN sizes AS s ON s.stage = b.stage GROUP BY b.stage
  UNION ALL SELECT stage, NULL, 'max_bucket', max(n) FROM buckets GROUP BY stage
  UNION ALL SELECT b.stage, NULL, 'entropy', -sum(b.n / s.items * ln(b.n / s.items))
    FROM buckets AS b JOIN sizes AS s ON s.stage = b.stage GROUP BY b.stage
  UNION ALL SELECT stage, depth, 'distinct_prefixes', count(DISTINCT prefix) FROM prefixes GROUP BY stage, depth
  UNION ALL SELECT c.stage, c.depth, 'perplexity', exp(-sum(c.n / s.items * ln(c.n / s.items)))
    FROM codes AS c JOIN sizes AS s ON s.stage = c.stage GROUP BY c.stage, c.depth
),
stored_diagnostics AS (
  SELECT 'letter' AS stage, fact, level, value FROM letter_audit
  UNION ALL SELECT 'office', fact, level, value FROM office_audit
),
figures AS (
  SELECT w.name, s.figure || '@' || s.k AS figure, s.value AS recomputed, o.value AS stored
  FROM wanted AS w
  JOIN scores AS s ON s.stage = w.stage AND s.ties = w.ties
  LEFT JOIN stored_scores AS o
    ON o.stage = w.stage AND o.ties = w.ties AND o.metric = s.figure AND o.k = s.k AND o.slice = 'all'
  UNION ALL
  SELECT d.stage || ' semantic ids', d.fact || coalesce(' ' || d.level, ''), d.value, o.value
  FROM diagnostics AS d
  LEFT JOIN stored_diagnostics AS o
    ON o.stage = d.stage AND o.fact = d.fact AND o.level IS NOT DISTINCT FROM d.level
)
SELECT name, figure, recomputed, stored, abs(recomputed - stored) AS difference
FROM figures ORDER BY name, figure
