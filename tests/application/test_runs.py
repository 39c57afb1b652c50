"""Runs asked for by hand: admitted while there is room, cancelled, tried again; by many callers at once."""

from datetime import timedelta
from uuid import uuid4

import pytest

from domain.refusals import Conflict, Forbidden, Invalid, NotFound, QuotaExceeded
from tests.application.world import race

CALLERS = 16


class TestRequesting:
    def test_leaves_a_waiting_run_and_a_unit_taken(self, acme):
        run_id = acme.request(parameters={"days": 3}, trigger_by="console")
        run = acme.run(run_id)
        assert (run["state"], run["provider"], run["trigger_type"], run["trigger_by"]) == (
            "PENDING",
            "GCP",
            "manual",
            "console",
        )
        assert (run["run_date"], run["parameters"], run["attempt"]) == (acme.at.date(), {"days": 3}, 0)
        queued = acme.row("pipeline_execution_queue")
        assert (queued["state"], queued["priority"], queued["deleted_at"]) == ("PENDING", 10, None)
        assert acme.usage() == (1, 1, 0)

    def test_again_with_the_same_id_finds_the_same_run(self, acme):
        run_id = str(uuid4())
        assert {acme.request(run_id=run_id) for _ in range(3)} == {run_id}
        assert acme.usage() == (1, 1, 0)

    def test_again_by_many_at_once_makes_one_run(self, acme):
        run_id = str(uuid4())
        assert set(race(CALLERS, lambda _: acme.request(run_id=run_id))) == {run_id}
        assert acme.kinds().count("RunScheduled") == 1
        assert acme.usage() == (1, 1, 0)

    def test_with_another_customers_run_id_is_refused(self, acme):
        acme.onboard("other")
        theirs = acme.request("other")
        with pytest.raises(NotFound):
            acme.request(run_id=theirs)

    @pytest.mark.parametrize(
        ("wrong", "refusal"),
        [({"template": "nonesuch"}, NotFound), ({"provider": "../gcp"}, NotFound), ({"parameters": {"x": 1}}, Invalid)],
    )
    def test_what_does_not_exist_takes_nothing(self, acme, wrong, refusal):
        with pytest.raises(refusal):
            acme.request(**wrong)
        assert acme.usage() == (0, 0, 0)

    def test_names_are_matched_without_regard_to_case(self, acme):
        run = acme.run(acme.request(provider="GCP", domain="Example", template="DRYRUN"))
        assert (run["provider"], run["domain"], run["pipeline_template"]) == ("GCP", "EXAMPLE", "dryrun")


class TestQuota:
    def test_the_refused_are_told_and_recorded_once(self, acme):
        acme.limits(max_pipelines_per_day=2)
        acme.request()
        acme.request()
        for _ in range(3):
            with pytest.raises(QuotaExceeded, match="Used 2/2 pipelines today") as raised:
                acme.request()
        assert raised.value.resets_at == (acme.at + timedelta(days=1)).replace(hour=0)
        assert acme.kinds().count("RunRefused") == 1
        acme.wait(days=1)
        acme.request()
        assert acme.usage()[0] == 1

    def test_a_full_house_refuses_at_once(self, acme):
        acme.limits(max_concurrent_pipelines=1)
        acme.request()
        orders = acme.claim()
        with pytest.raises(QuotaExceeded, match="1/1 pipelines currently running"):
            acme.request()
        acme.report(orders)
        acme.request()

    def test_a_suspended_customer_is_told_so(self, acme):
        acme.suspend()
        with pytest.raises(Forbidden, match="Account suspended"):
            acme.request()
        assert "RunRefused" not in acme.kinds()


class TestCancelling:
    def test_a_waiting_run_gives_its_unit_back(self, acme):
        run_id = acme.request()
        acme.cancel(run_id)
        assert acme.run(run_id)["state"] == "CANCELLED"
        assert acme.usage() == (0, 0, 0)
        assert acme.row("pipeline_execution_queue")["deleted_at"] == acme.at
        assert acme.claim() == []

    def test_the_next_day_the_unit_goes_to_the_day_before(self, acme):
        kept, cancelled = acme.request(), acme.request()
        yesterday = acme.at.date()
        acme.wait(days=1)
        acme.request()
        acme.cancel(cancelled)
        assert acme.usage(day=yesterday)[0] == 1
        assert acme.usage()[0] == 1
        assert acme.run(kept)["state"] == "PENDING"

    def test_a_unit_goes_back_to_the_day_that_was_charged_whatever_the_callers_clock_said(self, acme):
        """Asked just before midnight, taken up by the store just after somebody whose clock was past it."""
        acme.at = acme.at.replace(hour=0) + timedelta(days=1)
        acme.request()
        acme.wait(microseconds=-1)
        late = acme.request()
        acme.wait(microseconds=1)
        assert acme.usage()[0] == 2
        acme.cancel(late)
        assert acme.usage()[0] == 1

    def test_a_running_one_is_marked_for_its_worker_and_keeps_its_unit(self, acme):
        run_id = acme.request()
        [order] = acme.claim()
        acme.cancel(run_id)
        assert acme.run(run_id)["state"] == "RUNNING"
        assert acme.scalar("SELECT stop_asked FROM run_leases")
        assert acme.report([order], cancelled=True) == []
        assert acme.run(run_id)["state"] == "CANCELLED"
        assert acme.usage() == (1, 1, 0)
        assert acme.scalar("SELECT count(*) FROM run_leases") == 0

    def test_a_cancelled_run_is_not_tried_again(self, acme):
        run_id = acme.request()
        [order] = acme.claim()
        acme.cancel(run_id)
        acme.report([order], handed_back="The worker shut down.")
        assert acme.run(run_id)["state"] == "CANCELLED"
        assert acme.claim() == []
        assert acme.usage() == (1, 1, 0)

    def test_what_ended_stays_as_it_is(self, acme):
        run_id = acme.request()
        acme.report(acme.claim())
        with pytest.raises(Conflict, match="COMPLETED already"):
            acme.cancel(run_id)

    def test_by_many_at_once_gives_one_unit_back(self, acme):
        acme.request()
        run_id = acme.request()
        answers = race(8, lambda _: acme.cancel(run_id))
        assert sum(answer is None for answer in answers) == 1
        assert acme.usage() == (1, 1, 0)

    @pytest.mark.parametrize("run_id", ["", "not-a-run", "11111111-1111-4111-8111-111111111111"])
    def test_an_unknown_run_is_not_found(self, acme, run_id):
        for ask in (acme.cancel, acme.retry):
            with pytest.raises(NotFound, match="No such run"):
                ask(run_id)

    def test_another_customers_run_is_not_there(self, acme):
        acme.onboard("other")
        theirs = acme.request("other")
        for ask in (acme.cancel, acme.retry):
            with pytest.raises(NotFound, match="No such run"):
                ask(theirs)
        assert acme.run(theirs)["state"] == "PENDING"
        assert acme.usage("other") == (1, 1, 0)


class TestTryingAgain:
    def test_makes_a_new_run_of_the_same(self, acme):
        old = acme.request(parameters={"days": 2})
        acme.cancel(old)
        acme.wait(hours=1)
        new = acme.retry(old)
        first, second = acme.run(old), acme.run(new)
        assert (first["state"], second["state"], second["trigger_type"]) == ("CANCELLED", "PENDING", "retry")
        assert (second["run_date"], second["parameters"]) == (first["run_date"], {"days": 2})
        assert acme.usage() == (1, 1, 0)

    def test_of_a_run_that_goes_well_is_refused(self, acme):
        run_id = acme.request()
        for state in ("PENDING", "RUNNING", "COMPLETED"):
            with pytest.raises(Conflict, match=f"The run is {state}"):
                acme.retry(run_id)
            if state == "PENDING":
                orders = acme.claim()
            elif state == "RUNNING":
                acme.report(orders)

    def test_counts_like_any_other(self, acme):
        acme.limits(max_pipelines_per_day=1)
        old = acme.request()
        acme.report(acme.claim(), cancelled=True)
        with pytest.raises(QuotaExceeded):
            acme.retry(old)

    def test_of_a_template_that_is_gone_takes_no_unit(self, acme):
        old = acme.request()
        acme.cancel(old)
        gone = ("gcp", "example", "dryrun")
        acme.catalogue.names.remove(gone)
        with pytest.raises(NotFound, match="No such pipeline template"):
            acme.retry(old)
        assert acme.usage() == (0, 0, 0)
        acme.catalogue.names.add(gone)
        acme.retry(old)
        assert acme.usage() == (1, 1, 0)
