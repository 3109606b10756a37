-- Which users one system wins and the other loses: both scored on the same users, by rank of the held-out item.
-- $a: a stage of score_ranking
-- $b: another one
-- $k: the cut-off
-- empty: no user whom one of "$a" and "$b" hits at $k and the other does not, or no stage of that name
-- try: sluice sql "SELECT DISTINCT stage FROM outputs('score_ranking', 'per_user') WHERE here" names the stages
WITH ranks AS (
  SELECT stage, user_id, target, rank, rank <= CAST($k AS BIGINT) AS hit FROM outputs('score_ranking', 'per_user') WHERE here
)
SELECT CASE WHEN coalesce(a.hit, false) THEN 'a wins' ELSE 'b wins' END AS who,
       a.user_id, a.target, a.rank AS rank_a, b.rank AS rank_b
FROM (SELECT * FROM ranks WHERE stage = $a) AS a
JOIN (SELECT * FROM ranks WHERE stage = $b) AS b ON b.user_id = a.user_id
WHERE coalesce(a.hit, false) <> coalesce(b.hit, false)
ORDER BY who, a.rank, b.rank, a.user_id
