"""A service moves to another machine with nothing but its export and its wrapping key."""

import json
import shutil
from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from tests.application.world import until
from tests.e2e.conftest import Serve


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[Serve]:
    """Another machine: nothing was started there yet."""
    server = Serve(tmp_path / "elsewhere" / "var")
    server.data_dir.parent.mkdir()
    yield server
    server.end()


def test_a_service_goes_on_elsewhere_with_its_keys_its_rows_and_no_second_welcome(serve, elsewhere, tmp_path):
    customer_id = f"c_{uuid4().hex[:8]}"
    asked = {"customer_id": customer_id, "company_name": "Corp", "admin_email": "a@example.com"}
    api_key = httpx.post(f"{serve.url}/api/v1/customers/onboard", json=asked, timeout=30).json()["api_key"]
    answer = httpx.post(
        f"{serve.url}/api/v1/pipelines/run/{customer_id}/gcp/example/dryrun", headers={"X-API-Key": api_key}, timeout=30
    )
    run_id = answer.json()["pipeline_logging_id"]
    until(lambda: serve.json("runs", run_id)["state"] == "COMPLETED", 60)
    exported = serve.json("export", str(tmp_path / "archive"))
    assert serve.run("export", "--check", str(tmp_path / "archive")).returncode == 0

    (elsewhere.data_dir / "keys").mkdir(parents=True)
    shutil.copy2(serve.data_dir / "keys" / "wrapping.key", elsewhere.data_dir / "keys")
    elsewhere.start()
    elsewhere.await_bigquery()
    imported = elsewhere.json("import", str(tmp_path / "archive"))
    assert (imported["events"], imported["hash"]) == (exported["events"], exported["hash"])

    profile = httpx.get(f"{elsewhere.url}/api/v1/customers/{customer_id}", headers={"X-API-Key": api_key}, timeout=30)
    assert profile.json()["company_name"] == "Corp"
    count = f"SELECT COUNT(*) AS runs FROM `gac-prod-471220.{customer_id}.x_meta_pipeline_runs`"

    def filled() -> bool:
        done = elsewhere.run("query", count, "--json")
        return done.returncode == 0 and json.loads(done.stdout)[0]["runs"] >= 1

    until(filled, 60)
    # The projector has gone through the whole log, and welcomed nobody.
    assert not list(elsewhere.data_dir.glob("outbox/*"))
    assert list(serve.data_dir.glob("outbox/*"))
