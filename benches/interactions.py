"""Made-up interactions as CSV, the same every time: `interactions.py ROWS FILE [popular]`. ROWS / 10 users, 200,000 items;
with `popular` some items are far more popular than others."""

import random
import sys


def write(rows, path, popular=False):
    rng = random.Random(1)
    with open(path, "w") as out:
        out.write("user_id,item_id,timestamp\n")
        for start in range(0, rows, 100_000):
            lines = []
            for _ in range(min(100_000, rows - start)):
                bits = rng.getrandbits(64)
                item = int(((bits >> 32) / 2**32) ** 2 * 200_000) if popular else (bits >> 32) % 200_000
                lines.append(f"{bits % (rows // 10)},{item},{1_500_000_000 + (bits >> 20) % 100_000_000}\n")
            out.writelines(lines)


if __name__ == "__main__":
    write(int(sys.argv[1]), sys.argv[2], "popular" in sys.argv[3:])
