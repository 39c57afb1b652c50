"""`python -m tests.simulation --seed 17 --days 4`: live through a seed's days, and tell what happened, line by line.

With `--seeds 100` also through the 99 seeds after it, and tell of the first in which something was wrong.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from adapters.embedded.postgres import EmbeddedPostgres
from tests.simulation.days import Days
from tests.simulation.virtual_clock import VirtualClock, virtual_database


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--days", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True, markup=False)
    with tempfile.TemporaryDirectory() as directory:
        there = Path(directory)
        with EmbeddedPostgres(there / "postgres", durable=False) as server, virtual_database(server.dsn) as dsn:
            clock = VirtualClock(dsn)
            for seed in range(asked.seed, asked.seed + asked.seeds):
                days = Days(dsn, there / "key", clock, seed=seed, days=asked.days)
                try:
                    days.run()
                except AssertionError as error:
                    console.print("\n".join(days.trace))
                    console.print(f"\nseed {seed}: {error}")
                    return 1
                if asked.seeds == 1:
                    console.print("\n".join(days.trace))
            clock.close()
    console.print(f"{asked.seeds} seeds, {asked.days} days each: nothing was wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())
