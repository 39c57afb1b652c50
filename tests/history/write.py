"""`python -m tests.history.write`: keep an example of every event that has none yet, and change none that has."""

import sys

from tests.history.shapes import write_missing

if __name__ == "__main__":
    for path in write_missing():
        sys.stdout.write(f"{path.name}\n")
