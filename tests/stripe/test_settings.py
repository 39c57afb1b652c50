"""The settings of billing: what they come to, and what is refused with a sentence that repeats nothing."""

import secrets
from datetime import timedelta

import pytest

from adapters.settings import WrongSettings, read
from domain.plans import Plan

SOUND = {
    "environment": "production",
    "admin_api_key": secrets.token_urlsafe(32),
    "database_url": "postgresql://convergence@db.internal/convergence?sslmode=verify-full",
    "gcp_project_id": "acme-prod",
    "kms_keyring": "convergence",
    "public_url": "https://convergence.example",
    "stripe_webhook_secret": f"whsec_{secrets.token_hex(16)}, whsec_{secrets.token_hex(16)}",
    "stripe_prices": '{"price_1": "SCALE"}',
}


def test_production_takes_live_money_and_a_laptop_does_not():
    settings = read(**SOUND)
    assert settings.takes_live
    assert [secret[:6] for secret in settings.stripe_secrets] == ["whsec_"] * 2
    assert not read().takes_live
    assert read().stripe_secrets == ()
    assert not read(**SOUND | {"stripe_live": False}).takes_live


def test_the_terms_are_what_is_sold():
    terms = read(stripe_prices='{"price_1": "STARTER"}', billing_grace_days="0").terms
    assert (terms.prices, terms.grace) == ({"price_1": Plan.STARTER}, timedelta(0))


@pytest.mark.parametrize(
    "value", ["{", "[]", "3", '{"price_1": "GOLD"}', '{"price_1": ["SCALE"]}', '{"price_1": null}']
)
def test_wrong_prices_are_refused(value):
    with pytest.raises(
        WrongSettings, match=r"STRIPE_PRICES: must be a JSON object from .* to STARTER, PROFESSIONAL"
    ) as e:
        read(stripe_prices=value)
    assert value not in str(e.value) or value in {"3", "[]", "{"}


@pytest.mark.parametrize(
    ("name", "value"), [("stripe_webhook_secret", "whsec_short"), ("stripe_prices", None), ("billing_grace_days", 91)]
)
def test_production_refuses_what_would_cost_money(name, value):
    with pytest.raises(WrongSettings, match=name.upper()):
        read(**{key: v for key, v in (SOUND | {name: value}).items() if v is not None})
