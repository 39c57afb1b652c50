"""`convergence verify --chain`: what it says of a log that is as it was, and of one that is not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import pytest

from tests.application.world import migrated
from tests.faults.evidence import append, as_owner, opened, seal, sign

CONVERGENCE = str(Path(sys.executable).with_name("convergence"))


@pytest.fixture(scope="module")
def migrated_template(postgres_server) -> str:
    return migrated(postgres_server.dsn)


def test_the_log_is_checked(database_url, bigquery_emulator, tmp_path):
    dataset = f"chain_{uuid4().hex[:12]}"
    environment = {
        "PATH": os.defpath,
        "DATABASE_URL": database_url,
        "DATA_DIR": str(tmp_path),
        "BIGQUERY_EMULATOR_HOST": bigquery_emulator,
        "CUSTOMERS_DATASET_ID": dataset,
    }

    def verify(*options: str) -> "subprocess.CompletedProcess[str]":
        command = [CONVERGENCE, "verify", "--chain", *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    with opened(database_url, tmp_path, bigquery_emulator_host=bigquery_emulator) as service:
        append(service)
        sign(service, seal(service))
        sound = verify()
        assert sound.returncode == 0, sound.stderr
        assert "The log is what was sealed and signed." in sound.stdout
        as_owner(service, "UPDATE stored_events SET state = '{}' WHERE notification_id = 7")
        spoiled = verify("--json", "--heads-file", str(tmp_path / "log-heads.jsonl"))
        assert spoiled.returncode == 1, spoiled.stderr
        log = json.loads(spoiled.stdout)["chain"]
        assert (log["found"], log["counts"], log["events"]) == (1, {"event altered": 1}, 20)
        [finding] = log["findings"]
        assert (finding["kind"], finding["position"], finding["version"]) == ("event altered", 7, 7)
    wrong = verify("--public-key", "short")
    assert wrong.returncode == 2
    assert "32 bytes in base64" in wrong.stderr
