-- What the models cost when they last ran: parameters, floating-point operations, time, memory, energy, milliseconds a user.
-- Operations are those of the matrix products; users are served in batches, so that a user's share of the time is less
-- than one would wait alone; energy is that of the whole machine, where it tells.
WITH notes AS (
  SELECT run, stage,
         CAST(max(value) FILTER (WHERE name = 'parameters') AS BIGINT) AS parameters,
         max(value) FILTER (WHERE name = 'training_flops') AS training_flops,
         max(value) FILTER (WHERE name = 'users') AS users
  FROM sys.metrics WHERE kind = 'note' GROUP BY run, stage
),
ran AS (
  SELECT *, row_number() OVER (PARTITION BY pipeline, stage ORDER BY run DESC) AS age FROM sys.stages WHERE outcome = 'ran'
)
SELECT r.pipeline, r.stage, r.operator, n.parameters, n.training_flops,
       round(r.seconds, 3) AS seconds, round(r.cpu_seconds, 3) AS cpu_seconds,
       round(n.training_flops / r.seconds / 1e9, 1) AS gflops_per_second,
       round(1000 * r.seconds / n.users, 4) AS ms_per_user,
       r.peak_memory_bytes, r.energy_joules, r.run
FROM ran AS r JOIN notes AS n ON n.run = r.run AND n.stage = r.stage
WHERE r.age = 1 AND (n.parameters IS NOT NULL OR n.users IS NOT NULL AND (r.operator LIKE 'generate%' OR r.operator LIKE 'rank%'))
ORDER BY r.pipeline, r.started, r.stage
