"""A worker process whose pipelines do nothing: what is left is the cost of running them."""

import signal
import sys
import threading

from adapters.bootstrap import build
from adapters.settings import Settings
from adapters.worker import run_worker
from application.ports import RunOrder, RunProgress, RunReport


class Noop:
    """Completes every run at once."""

    def run(self, order: RunOrder, progress: RunProgress) -> RunReport:
        return RunReport(succeeded=True)


def main() -> None:
    dsn, data_dir, worker_id, concurrency = sys.argv[1:5]
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = Settings(
        data_dir=data_dir,
        worker_id=worker_id,
        worker_concurrency=int(concurrency),
        bigquery_emulator_host="127.0.0.1:1",
        database_pool_size=int(concurrency) + 4,
    )
    run_worker(build(settings, dsn, engine=Noop()), stop)


if __name__ == "__main__":
    main()
