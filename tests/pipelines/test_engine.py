"""The engine: order, limits of time, tries, cancellation, and what people are told."""

import importlib.util
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters.pipelines.engine import Limits
from adapters.pipelines.failures import StepFailed
from adapters.pipelines.source import Sources
from application.ports import Away, Cancelled

_spec = importlib.util.spec_from_file_location("pipelines_between", Path(__file__).with_name("between.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
SLOW, between = _module.SLOW, _module.between

TELL = "  - {id: tell, type: notify, when: failure}\n"


@pytest.fixture
def server(bench):
    with between(bench.url) as running:
        yield running


def query(name: str, more: str = "", file: str = "good") -> str:
    return f"  - {{id: {name}, type: bigquery_query, sql: {file}.sql{more}}}\n"


def statuses(bench) -> dict[str, str]:
    return {name: step.status for name, step in bench.progress.steps.items()}


def test_dryrun_reaches_the_customers_dataset(bench):
    report = bench.run("GCP/example/DryRun", "2025-11-17")
    assert report.succeeded, report.error
    assert statuses(bench) == {"plan": "COMPLETED", "read": "COMPLETED", "tables": "COMPLETED", "tell": "SKIPPED"}
    read = bench.progress.steps["read"]
    assert read.rows == 1
    assert read.type == "bigquery_query"
    assert len(read.metadata["job_ids"]) == 1
    assert read.ended_at >= read.started_at
    assert [step.index for step in bench.progress.steps.values()] == [0, 1, 2, 3]


def test_dryrun_says_what_is_missing(bench):
    bench.client.delete_table(f"{bench.customer}.x_meta_dq_results", timeout=30)
    report = bench.run("gcp/example/dryrun", "2025-11-17")
    assert report.error == "Data quality: execution_log_tables: 2 of 3 tables of the execution log."
    bench.client.delete_dataset(bench.customer, delete_contents=True, timeout=30)
    report = bench.run("gcp/example/dryrun", "2025-11-17")
    assert not report.succeeded
    assert not report.can_pass


def test_bad_sql_fails_at_once_with_its_name_and_later_steps_are_skipped(bench, server):
    steps = "steps:\n" + query("bad", file="bad") + query("after", ", depends_on: [bad]") + TELL
    bench.template(
        "it", steps, good="SELECT 1 AS one", bad="SELECT no_such_column FROM {{ table('x_meta_step_logs') }}"
    )
    report = bench.run("gcp/test/it", "2025-11-17", url=server.url)
    assert not report.succeeded
    assert not report.can_pass
    assert "no_such_column" in report.error
    assert server.jobs_asked == 1
    assert statuses(bench) == {"bad": "FAILED", "after": "SKIPPED", "tell": "COMPLETED"}


def test_values_in_errors_are_not_repeated(bench):
    bench.template("it", "steps:\n" + query("bad"), good="SELECT CAST(CONCAT('CAN', 'ARY') AS INT64) AS n")
    report = bench.run("gcp/test/it", "2025-11-17")
    assert not report.succeeded
    assert "CANARY" not in report.error + repr(bench.progress.steps)


@pytest.mark.parametrize("refusals", [[503, 503], [429], [None]])
def test_errors_that_pass_are_tried_again_within_the_step(bench, server, refusals):
    bench.template("it", "steps:\n" + query("one", ", retries: 2"), good="SELECT 1 AS one")
    server.refusals.extend(refusals)
    report = bench.run("gcp/test/it", "2025-11-17", url=server.url)
    assert report.succeeded, report.error
    assert server.jobs_asked == len(refusals) + 1


@pytest.mark.parametrize(("status", "can_pass", "asked"), [(503, True, 2), (403, False, 1), (400, False, 1)])
def test_tries_end_and_other_errors_are_not_tried_again(bench, server, status, can_pass, asked):
    bench.template("it", "steps:\n" + query("one", ", retries: 1"), good="SELECT 1 AS one")
    server.refusals.extend([status] * 3)
    report = bench.run("gcp/test/it", "2025-11-17", url=server.url)
    assert not report.succeeded
    assert report.can_pass is can_pass
    assert server.jobs_asked == asked
    assert "CANARY" not in report.error


def test_nobody_listening_is_an_error_that_passes(bench):
    bench.template("it", "steps:\n" + query("one", ", retries: 0"), good="SELECT 1 AS one")
    report = bench.run("gcp/test/it", "2025-11-17", url="http://127.0.0.1:9")
    assert report.error == "BigQuery did not answer, or not in time."
    assert report.can_pass


def test_a_step_beyond_its_time_is_stopped_and_its_job_cancelled(bench, server):
    steps = "steps:\n" + query("slow", ", timeout_s: 1", "slow") + query("after")
    bench.template("it", steps, slow=f"SELECT 1 AS one {SLOW}", good="SELECT 1 AS one")
    began = time.monotonic()
    report = bench.run("gcp/test/it", "2025-11-17", url=server.url)
    assert time.monotonic() - began < 5
    assert report.error == "The step slow took longer than 1 seconds and was stopped."
    assert report.can_pass
    assert server.cancelled == bench.progress.steps["slow"].metadata["job_ids"]
    assert statuses(bench) == {"slow": "FAILED", "after": "SKIPPED"}


def test_a_run_beyond_its_time_is_stopped(bench, server):
    bench.limits = Limits(run_s=1.0)
    bench.template("it", "steps:\n" + query("slow", file="slow") + TELL, slow=f"SELECT 1 AS one {SLOW}")
    report = bench.run("gcp/test/it", "2025-11-17", url=server.url, last_attempt=True)
    assert report.error == "The run took longer than 1 seconds and was stopped."
    assert report.can_pass
    assert len(server.cancelled) == 1
    assert len(bench.mails()) == 1


def test_a_step_that_may_fail_does_not_fail_the_run_even_when_it_was_given_up(bench, server):
    steps = (
        "steps:\n"
        + query("slow", ", timeout_s: 1, on_failure: continue", "slow")
        + query("after", ", depends_on: [slow]")
    )
    bench.template("it", steps + TELL, slow=f"SELECT 1 AS one {SLOW}", good="SELECT 1 AS one")
    report = bench.run("gcp/test/it", "2025-11-17", url=server.url)
    assert report.succeeded
    assert statuses(bench) == {"slow": "FAILED", "after": "COMPLETED", "tell": "SKIPPED"}


def test_a_cancelled_run_is_seen_within_a_second_and_its_job_cancelled(bench, server):
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

    bench.progress.on_check = check
    bench.template("it", "steps:\n" + query("slow", file="slow") + TELL, slow=f"SELECT 1 AS one {SLOW}")
    outcome: list[object] = []

    def run() -> None:
        try:
            outcome.append(bench.run("gcp/test/it", "2025-11-17", url=server.url))
        except Cancelled as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert server.started.wait(20)
    began = time.monotonic()
    cancelled.set()
    thread.join(10)
    assert time.monotonic() - began < 5
    assert isinstance(outcome[0], Cancelled)
    assert len(server.cancelled) == 1
    assert bench.progress.steps == {}
    assert bench.mails() == []


def test_a_run_cancelled_before_it_starts_does_nothing(bench, server):
    def check() -> None:
        raise Cancelled

    bench.progress.on_check = check
    with pytest.raises(Cancelled):
        bench.run("gcp/example/dryrun", "2025-11-17", url=server.url)
    assert server.jobs_asked == 0


def test_a_failed_run_is_told_once_when_no_attempt_follows(bench, server):
    bench.template("it", "steps:\n" + query("one", ", retries: 0") + TELL, good="SELECT 1 AS one")
    for attempt in (1, 2, 3):
        server.refusals.append(503)
        bench.run("gcp/test/it", "2025-11-17", url=server.url, attempt=attempt, last_attempt=attempt == 3)
    (mail,) = bench.mails()
    assert "ops@example.com" in mail
    assert f"gcp/test/it failed: {bench.customer}, 2025-11-17" in mail
    assert "BigQuery could not do it now" in mail
    assert "CANARY" not in mail


def test_attempts_that_did_not_count_do_not_make_one_the_last(bench, server):
    """A run that was handed back has a high attempt number, and comes again all the same."""
    bench.template("it", "steps:\n" + query("one", ", retries: 0") + TELL, good="SELECT 1 AS one")
    server.refusals.append(503)
    bench.run("gcp/test/it", "2025-11-17", url=server.url, attempt=7, last_attempt=False)
    assert bench.mails() == []
    server.refusals.append(503)
    bench.run("gcp/test/it", "2025-11-17", url=server.url, attempt=8, last_attempt=True)
    assert len(bench.mails()) == 1


def test_mail_that_cannot_be_sent_does_not_change_the_outcome(bench):
    class Silent:
        def send(self, mail: object) -> str:
            raise Away

    bench.mailer = Silent()
    steps = "steps:\n" + query("one") + "  - {id: tell, type: notify, when: always}\n"
    bench.template("it", steps, good="SELECT 1 AS one")
    assert bench.run("gcp/test/it", "2025-11-17").succeeded
    assert bench.progress.steps["tell"].metadata["sent"] is False


def test_success_is_told_where_a_template_says_so(bench):
    steps = "steps:\n" + query("one") + "  - {id: tell, type: notify, when: success}\n"
    bench.template("it", steps, good="SELECT 1 AS one")
    assert bench.run("gcp/test/it", "2025-11-17").succeeded
    assert "succeeded" in bench.mails()[0]
    bench.run("gcp/test/it", "2025-11-17", configuration={})
    assert len(bench.mails()) == 1


def test_an_unknown_template_and_wrong_parameters_are_reports(bench):
    assert bench.run("gcp/cost/nothing", "2025-11-17").error == "There is no such pipeline template."
    report = bench.run("gcp/cost/cost_billing", "2025-11-17", parameters={"source_table": "x`; DROP TABLE y; --"})
    assert report.error.startswith("The parameter source_table takes a table name")
    assert not report.can_pass


@pytest.mark.parametrize(
    "configuration",
    [
        {"source_project_id": "p`; DROP TABLE x; --", "source_dataset": "d"},
        {"source_project_id": "platform-project", "source_dataset": "d`.x; --"},
        {"source_project_id": "platform-project", "source_dataset": "d.x"},
        {"source_project_id": "platform-project"},
        {},
    ],
)
def test_a_configuration_that_names_no_place_is_refused(bench, configuration):
    report = bench.run("gcp/cost/cost_billing", "2025-11-17", configuration=configuration)
    assert report.error.startswith(("The provider configuration is not valid", "The pipeline needs a provider config"))
    assert "DROP" not in report.error


def test_nobody_reads_another_customers_dataset_or_the_platforms(bench):
    other = type(bench)(bench.url, bench.directory)
    other.client.create_dataset(other.customer, timeout=30)
    other.client.create_table(f"{other.client.project}.{other.customer}.x_meta_pipeline_runs", timeout=30)
    try:
        for dataset in (other.customer, "customers_metadata"):
            report = bench.run(
                "gcp/cost/cost_billing", "2025-11-17",
                parameters={"source_table": "x_meta_pipeline_runs"},
                configuration={"source_project_id": "platform-project", "source_dataset": dataset},
            )  # fmt: skip
            assert report.error == "The configured source_dataset belongs to the platform or to another customer."
    finally:
        other.client.delete_dataset(other.customer, delete_contents=True, timeout=30)
        other.client.close()


@pytest.mark.parametrize("place", [("others-project", "billing"), ("platform-project", "shared"), (None, "shared")])
def test_the_platforms_own_identity_reads_nothing_that_a_customer_names(bench, place):
    """At Google. Whoever let the platform into a project did so for one customer, and another can name it."""
    project, dataset = place
    order = bench.order(
        "gcp/cost/cost_billing", "2025-11-17",
        configuration={"source_project_id": project, "source_dataset": dataset},
    )  # fmt: skip
    sources = Sources(bench.client, bench.credentials, central="c", endpoint=None)
    with pytest.raises(StepFailed, match="There is no GCP credential for the project"):
        sources.client(order)
    # The control: what the emulator, which knows no identities, answers.
    assert Sources(bench.client, bench.credentials, central="c", endpoint=bench.url).client(order) is bench.client


def test_the_platforms_own_identity_reads_the_customers_dataset(bench):
    order = bench.order("gcp/cost/cost_billing", "2025-11-17", configuration={"source_dataset": bench.customer})
    assert Sources(bench.client, bench.credentials, central="c", endpoint=None).client(order) is bench.client


def test_a_key_for_another_address_is_refused(bench):
    class Keys:
        def credential(self, *_: object) -> dict:
            return {"type": "service_account", "token_uri": "http://169.254.169.254/", "private_key": "CANARY"}

    bench.credentials = Keys()
    engine = type(bench.engine())(
        registry=bench.registry, client=bench.client, central="c", credentials=Keys(), mailer=bench.mailer,
        now=lambda: datetime.now(UTC), endpoint=None,
    )  # fmt: skip
    report = engine.run(bench.order("gcp/cost/cost_billing", "2025-11-17"), bench.progress)
    assert report.error == "The credential for the source project is not a Google service-account key."
    assert "CANARY" not in repr(bench.progress.steps)
