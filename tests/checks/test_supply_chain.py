"""The checks of `make check` that are about what others wrote: each of them can fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BASELINE = ROOT / ".secrets.baseline"
LOCK = ROOT / "requirements.lock"
PLANTED = 'aws_access_key_id = "AKIAZ7REALLOOKINGKEY"\n'


def scan(file: Path) -> int:
    """The exit status of the scan that `make secrets` runs, over one file."""
    return subprocess.run(
        [BIN / "detect-secrets-hook", "--no-verify", "--baseline", BASELINE, file],
        cwd=file.parent,
        capture_output=True,
        timeout=60,
        check=False,
    ).returncode


def test_a_secret_in_a_file_is_found(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], timeout=60, check=True)
    file = tmp_path / "settings.py"
    file.write_text("region = 'eu-west-1'\n")
    assert scan(file) == 0
    file.write_text(PLANTED)
    assert scan(file) != 0


def test_a_list_of_files_that_cannot_be_made_fails_the_scan(tmp_path):
    """Outside of a checkout nothing would be scanned, which is no reason to be content."""
    for name in ("Makefile", "requirements-dev.lock", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    # As if installed: the stamp names the directory, and its programs are those of this one.
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    (tmp_path / ".venv" / ".installed").write_text(f"{tmp_path}\n")
    done = subprocess.run(
        ["make", "secrets"],
        cwd=tmp_path,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "git checkout" in done.stderr


def test_an_audit_without_an_answer_fails(tmp_path):
    """Through a proxy that nobody stands behind."""
    done = subprocess.run(
        [
            BIN / "pip-audit",
            "--strict",
            "--disable-pip",
            "--require-hashes",
            "--progress-spinner",
            "off",
            "--timeout",
            "1",
            "--cache-dir",
            tmp_path,
            "--requirement",
            ROOT / "requirements.lock",
        ],
        env={"PATH": "/usr/bin:/bin", "HTTPS_PROXY": "http://127.0.0.1:1", "HOME": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0


@pytest.fixture(scope="module")
def bill(tmp_path_factory) -> dict:
    """The bill of materials as `make sbom` makes it."""
    path = tmp_path_factory.mktemp("sbom") / "sbom.cdx.json"
    subprocess.run(
        [
            BIN / "cyclonedx-py",
            "requirements",
            "--output-format",
            "JSON",
            "--output-file",
            path,
            ROOT / "requirements.lock",
        ],
        capture_output=True,
        timeout=60,
        check=True,
    )
    return json.loads(path.read_text())


def test_the_bill_of_materials_names_what_is_locked(bill):
    listed = {component["name"]: component["version"] for component in bill["components"]}
    locked = dict(line.split(" ")[0].split("==") for line in LOCK.read_text().splitlines() if "==" in line)
    assert len(locked) > 50
    assert listed == locked
