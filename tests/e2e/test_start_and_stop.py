"""Starting and stopping a real server: in order, at once, after a crash, and where something is in the way."""

import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from uuid import uuid4

import httpx
import psutil
import pytest
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

STOP_S = 25


def onboard(serve) -> dict[str, str]:
    answer = httpx.post(
        f"{serve.url}/api/v1/customers/onboard",
        json={"customer_id": f"c_{uuid4().hex[:8]}", "company_name": "Corp", "admin_email": "a@example.com"},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def gone(family: list[psutil.Process], seconds: float) -> None:
    """Asserts that none of these processes is left."""
    _, alive = psutil.wait_procs(family, seconds)
    assert [process.cmdline() for process in alive] == []


def one_sentence(done) -> str:
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and "Starting" not in line]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything_and_the_data_stays(fresh, number):
    fresh.start()
    customer = onboard(fresh)
    family = fresh.family
    began = time.monotonic()
    assert fresh.stop(number) == 0
    assert time.monotonic() - began < STOP_S
    gone(family, 1)
    assert not (fresh.data_dir / "serve.json").exists()

    fresh.start()
    profile = httpx.get(
        f"{fresh.url}/api/v1/customers/{customer['customer_id']}", headers={"X-API-Key": customer["api_key"]}
    )
    assert profile.status_code == 200
    assert fresh.stop() == 0


def test_a_signal_during_the_start_stops_it_as_well(fresh):
    fresh.launch()
    for attempt in Retrying(
        retry=retry_if_exception_type(AssertionError), wait=wait_fixed(0.02), stop=stop_after_delay(20), reraise=True
    ):
        with attempt:
            assert (fresh.data_dir / "postgres").exists()
    family = fresh.family
    assert fresh.stop() == 0
    gone(family, 5)


def test_a_second_signal_ends_it_at_once(fresh):
    fresh.start()
    family = fresh.family
    began = time.monotonic()
    while fresh.process.poll() is None:
        fresh.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            fresh.process.wait(0.05)
    assert fresh.process.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 2
    gone(family, STOP_S)


def test_a_signal_that_comes_twice_is_one(fresh):
    fresh.start()
    fresh.process.send_signal(signal.SIGINT)
    assert fresh.stop() == 0
    assert not (fresh.data_dir / "serve.json").exists()


def test_a_killed_server_leaves_no_process_behind_and_starts_again(fresh):
    fresh.start()
    customer = onboard(fresh)
    children = fresh.family[1:]
    fresh.process.kill()
    fresh.process.wait(5)
    gone(children, STOP_S)
    assert fresh.run("query", "SELECT 1").returncode == 1  # its address file is stale, and known to be

    fresh.start()
    answer = httpx.get(
        f"{fresh.url}/api/v1/customers/{customer['customer_id']}", headers={"X-API-Key": customer["api_key"]}
    )
    assert answer.status_code == 200


def test_a_wiped_bigquery_is_filled_again_from_the_log(fresh):
    fresh.start()
    fresh.await_bigquery()
    customer = onboard(fresh)
    assert fresh.stop() == 0
    for file in (fresh.data_dir / "bigquery" / "data").iterdir():
        file.write_bytes(b"not a database")

    fresh.start()
    fresh.await_bigquery()
    sql = (
        f"SELECT customer_id FROM customers_metadata.customer_profiles WHERE customer_id = '{customer['customer_id']}'"
    )
    for attempt in Retrying(
        retry=retry_if_exception_type(AssertionError), wait=wait_fixed(0.2), stop=stop_after_delay(40), reraise=True
    ):
        with attempt:
            done = fresh.run("query", "--json", sql)
            assert customer["customer_id"] in done.stdout, done.stderr


def test_a_port_in_use_is_said_before_anything_starts(fresh):
    with socket.create_server(("127.0.0.1", fresh.port)):
        done = fresh.run("serve")
    assert done.returncode == 1
    assert one_sentence(done) == f"Port {fresh.port} is in use by another program: set PORT to a free one."
    assert not fresh.data_dir.exists()


def test_a_bigquery_port_in_use_is_said(fresh):
    with socket.create_server(("127.0.0.1", fresh.emulator_port)):
        done = fresh.run("serve")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "BIGQUERY_EMULATOR_PORT" in done.stderr.splitlines()[-1]
    assert not (fresh.data_dir / "serve.json").exists()


def test_a_damaged_data_directory_is_said(fresh):
    fresh.start()
    family = fresh.family
    assert fresh.stop() == 0
    (fresh.data_dir / "postgres" / "data" / "global" / "pg_control").write_bytes(b"damaged")
    done = fresh.run("serve")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    sentence = done.stderr.splitlines()[-1]
    assert str(fresh.data_dir / "postgres") in sentence
    assert re.search(r"restore|move it away", sentence)
    gone(family, 5)


def test_a_damaged_key_file_is_said(fresh):
    fresh.start()
    assert fresh.stop() == 0
    (fresh.data_dir / "keys" / "wrapping.key").write_text("damaged")
    done = fresh.run("serve")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "wrapping.key" in done.stderr.splitlines()[-1]


def test_a_second_server_on_the_same_directory_is_refused(fresh):
    fresh.start()
    other = type(fresh)(fresh.data_dir)
    done = other.run("serve")
    assert done.returncode == 1
    assert "already in use by another convergence process" in done.stderr.splitlines()[-1]
    assert httpx.get(f"{fresh.url}/readyz").status_code == 200
    # The one that runs is still found.
    assert fresh.json("migrate") == {"applied": []}
