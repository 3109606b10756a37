"""Writes tests/golden/curve.tfevents with TensorBoard's own classes, and reads it as TensorBoard does.

Run with tensorboard installed:  python tests/reference/tensorboard_reference.py [DIR]
With a folder, the files below it (of "sluice tensorboard DIR") are read instead, and their scalars are printed.
"""
import io
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "curve.tfevents"
POINTS = [
    (1.7e9 + 0.125, 0, {"train/loss": 5.5, "learning_rate": 0.0}),
    (1.7e9 + 61.0, 127, {"train/loss": 1 / 3, "valid/recall_5": -1e-7}),
    (1.7e9 + 4000.75, 300_000, {"é": 1e38, "long/" * 40: 1.0}),
]


def read(path):
    """Tags with their (wall time, step, value)."""
    found = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    return {tag: [(e.wall_time, e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


if len(sys.argv) > 1:
    for path in sorted(pathlib.Path(sys.argv[1]).rglob("*tfevents*")):
        print(path)
        for tag, points in read(path).items():
            print(f"  {tag}: {len(points)} points, first {points[0]}, last {points[-1]}")
    sys.exit()

buffer = io.BytesIO()
writer = RecordWriter(buffer)
writer.write(Event(wall_time=POINTS[0][0], file_version="brain.Event:2").SerializeToString())
for wall_time, step, scalars in POINTS:
    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
    writer.write(Event(wall_time=wall_time, step=step, summary=Summary(value=values)).SerializeToString())
GOLDEN.write_bytes(buffer.getvalue())

tags = read(GOLDEN)
for wall_time, step, scalars in POINTS:
    for tag, value in scalars.items():
        [point] = [p for p in tags[tag] if p[1] == step]
        assert point[0] == wall_time and abs(point[2] - value) <= 1e-6 * abs(value), (tag, point)
assert sum(map(len, tags.values())) == sum(len(scalars) for _, _, scalars in POINTS)
print(f"{GOLDEN}: {len(buffer.getvalue())} bytes, read back")
