-- Where semantic ids collide: the prefixes that most items share, and the share of the catalogue in them.
-- $depth: how many codes of the id, such as 3 for all but the collision code
WITH ids AS (
  SELECT stage, item_id, array_to_string(array_slice(semantic_id, 1, CAST($depth AS BIGINT)), '-') AS prefix
  FROM outputs('quantize_*') WHERE here
),
hot AS (
  SELECT stage, prefix, count(*) AS items, min(item_id) AS example FROM ids GROUP BY stage, prefix HAVING count(*) > 1
),
titles AS (
  SELECT item_id, max(title) AS title FROM outputs('join_items') WHERE here GROUP BY item_id
)
SELECT h.stage, h.prefix, h.items,
       round(100.0 * h.items / (SELECT count(*) FROM ids AS i WHERE i.stage = h.stage), 3) AS percent, t.title AS example
FROM hot AS h LEFT JOIN titles AS t ON t.item_id = h.example
ORDER BY h.items DESC, h.stage, h.prefix
LIMIT 20
