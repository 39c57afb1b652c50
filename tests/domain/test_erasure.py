"""A customer that was erased decides nothing any more, whatever it is asked."""

import inspect
from datetime import UTC, datetime, timedelta

import pytest

from domain.customer import Customer, Status, evolve
from domain.customer_events import Erased
from domain.pipeline_run import PipelineRun, RunState
from domain.plans import Overrides, Plan
from domain.refusals import Conflict, NotFound
from domain.run_events import CancelRequested, RunCancelled, RunScheduled, Trigger
from domain.subscription import evolve as after
from domain.subscription import open_subscription
from domain.subscription_events import Cancelled

AT = datetime(2025, 11, 17, 12, tzinfo=UTC)
LOOKS = {"active_keys", "keys_named", "configuration", "erase"}
"""Methods that decide nothing; and the one that says it is erased already."""
OF_WHAT_IT_HAS = {"reseal", "revoke_leaked_key"}
"""Said of secrets that somebody has found somewhere; those of nobody are passed over."""
ACTIVE = Customer(customer_id="acme", company_name="ACME", admin_email="a@acme.example")
ERASED = evolve(ACTIVE, Erased(reason="asked to"))


def decisions(kind=Customer):
    return sorted(
        n for n, m in inspect.getmembers(kind, inspect.isfunction) if not n.startswith("_") and n not in LOOKS
    )


def asked(customer, decision):
    """What comes of a decision whose arguments nobody has looked at."""
    method = getattr(customer, decision)
    taken = inspect.signature(method).parameters
    by_name = {p for p in taken if taken[p].kind is inspect.Parameter.KEYWORD_ONLY}
    return method(*[() for p in taken if p not in by_name], **dict.fromkeys(by_name, ()))


@pytest.mark.parametrize("decision", [d for d in decisions() if d not in OF_WHAT_IT_HAS])
def test_nothing_is_decided(decision):
    with pytest.raises(NotFound, match="No such customer"):
        asked(ERASED, decision)


@pytest.mark.parametrize("decision", sorted(OF_WHAT_IT_HAS))
def test_what_it_had_is_gone(decision):
    assert asked(ERASED, decision) == ()


def test_a_decision_that_does_not_ask_is_found():
    class Careless(Customer):
        def rename(self, name):
            return (name,)

    careless = Careless(customer_id="acme", company_name="", admin_email="", status=Status.ERASED)
    assert "rename" in decisions(Careless)
    assert asked(careless, "rename") == ((),)


def test_it_is_erased_once():
    assert ACTIVE.erase("asked to") == (Erased(reason="asked to"),)
    assert ERASED.erase("asked to") == ()
    assert (ERASED.customer_id, ERASED.company_name, ERASED.api_keys) == ("acme", "", {})


def run(**more):
    order = RunScheduled(
        customer_id="acme",
        provider="GCP",
        domain="COST",
        template="t",
        pipeline_id="p",
        trigger_type=Trigger.MANUAL,
        trigger_by="x",
        run_date=AT.date(),
        scheduled_for=AT,
        priority=10,
    )
    return PipelineRun(order=order, **more)


def test_a_run_that_is_ended_is_nobodys():
    waiting, running = run(), run(state=RunState.RUNNING, attempt=1, worker_id="w", started_at=AT)
    assert [type(e) for e in waiting.end(AT, "erased")] == [RunCancelled]
    assert [type(e) for e in running.end(AT, "erased")] == [CancelRequested, RunCancelled]
    assert run(state=RunState.RUNNING, cancel_requested=True, attempt=1).end(AT, "erased")[0].reason == "erased"
    ended = run(state=RunState.CANCELLED, attempt=1, worker_id="w")
    assert ended.end(AT, "erased") == ()
    with pytest.raises(Conflict):
        ended.complete("w", 1, AT, 3)


def test_a_cancelled_subscription_takes_no_orders():
    state = after(None, open_subscription("acme", Plan.STARTER, AT))
    [cancelled] = state.cancel("erased")
    assert isinstance(cancelled, Cancelled)
    gone = after(state, cancelled)
    assert gone.cancel("again") == gone.resume("paid") == gone.pause("unpaid") == ()
    assert gone.admit(["r"], AT + timedelta(hours=1), starting=False).events == ()
    for order in (
        lambda: gone.change_plan(Plan.SCALE, "x", AT),
        lambda: gone.override_limits(Overrides(), "x", AT),
        lambda: gone.reset_usage(AT, "x", daily=True, monthly=False),
        lambda: gone.recount([], AT, "x"),
    ):
        with pytest.raises(Conflict):
            order()
