"""`make drill`: back up and restore both ways, and print what is alike and what is not."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from adapters import console
from tests.drill.drill import BESIDE_THE_LOG, Drill, Report, servers

DEEDS = 1_500


def main() -> int:
    with TemporaryDirectory(prefix="convergence-drill-") as directory:
        console.ERR.print(f"A drill with {DEEDS} deeds in {directory}: about a minute.")
        with servers(Path(directory)) as dsns:
            report = Drill(Path(directory), dsns, deeds=DEEDS).run()
    show(report)
    return 0 if report.succeeded else 1


def show(report: Report) -> None:
    """The tables, the times and the verdict."""
    rows = []
    for table, digest in report.digests["original"].items():
        count, _, sha = digest.partition(" rows ")
        rows.append((table, count, sha[:16], _alike(report, "restored", table), _alike(report, "imported", table)))
    console.print_table(("Table", "Rows", "SHA-256", "pg_restore", "import"), rows)
    console.print_table(("Step", "Seconds"), [(step, f"{s:.2f}") for step, s in report.seconds.items()])
    for server in ("restored", "imported"):
        console.OUT.print(
            f"{server}: {report.taken_over[server]} running runs taken over, {report.finished[server]} runs finished,"
            f" {report.credentials[server]} credentials opened."
        )
    alike = len(set(report.hashes.values())) == 1
    console.OUT.print(f"The hash over {report.events} events is {'the same' if alike else 'NOT the same'} everywhere.")
    console.OUT.print("Backup and restoration work." if report.succeeded else "They do NOT work.", style="bold")


def _alike(report: Report, server: str, table: str) -> str:
    if server == "imported" and table in BESIDE_THE_LOG:
        return "not in a log"
    return "DIFFERS" if table in report.differing(server) else "equal"


if __name__ == "__main__":
    sys.exit(main())
