"""Settings that would expose somebody are refused in production, with a sentence that names each and no value."""

import secrets

import pytest

from adapters.settings import LOCAL_ADMIN_KEY, WrongSettings, read

KEY = secrets.token_urlsafe(32)
SOUND = {
    "environment": "production",
    "admin_api_key": KEY,
    "database_url": "postgresql://convergence@db.internal/convergence?sslmode=verify-full",
    "gcp_project_id": "acme-prod",
    "kms_keyring": "convergence",
    "public_url": "https://convergence.example",
}


def test_sound_settings_are_taken():
    assert read(**SOUND).production


@pytest.mark.parametrize(
    "place", ["postgresql:///convergence?host=/run/postgresql", "host=localhost dbname=convergence"]
)
def test_a_database_on_this_machine_needs_no_tls(place):
    assert read(**SOUND | {"database_url": place}).production


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("admin_api_key", LOCAL_ADMIN_KEY),
        ("admin_api_key", "short"),
        ("admin_api_key", "a" * 64),
        ("admin_api_key_next", "ab" * 16),
        ("database_url", None),
        ("database_url", "postgresql://convergence@db.internal/convergence"),
        ("database_url", "postgresql://convergence@db.internal/convergence?sslmode=prefer"),
        ("database_url", "postgresql://convergence@localhost,db.internal/convergence"),
        ("gcp_project_id", None),
        ("bigquery_emulator_host", "localhost:9050"),
        ("kms_keyring", None),
        ("public_url", None),
        ("public_url", "http://convergence.example"),
        ("webhook_private_addresses", True),
    ],
)
def test_what_would_expose_somebody_is_refused(name, value):
    with pytest.raises(WrongSettings) as refusal:
        read(**SOUND | {name: value})
    assert name.upper() in str(refusal.value)
    assert KEY not in str(refusal.value)
    assert not isinstance(value, str) or len(value) < 6 or value not in str(refusal.value)
    # A laptop may.
    laptop = {"environment": "local", "database_url": None, "gcp_project_id": None, "public_url": None, name: value}
    assert not read(**laptop).production
