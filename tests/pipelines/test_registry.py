"""Templates: what stops the start, what a run may ask for, and names that are no names."""

from datetime import date

import pytest

from adapters.pipelines import identifiers
from adapters.pipelines.registry import Registry, TemplateError

QUERY = "{id: one, type: bigquery_query, sql: good.sql}"


def load(directory, steps: str, parameters: str = "{}", **more: str) -> Registry:
    place = directory / "gcp" / "test"
    place.mkdir(parents=True, exist_ok=True)
    (place / "good.sql").write_text("SELECT 1")
    (place / "broken.sql").write_text("SELECT {{ table(")
    head = {"id": "gcp-test-it", "version": "1", "description": "A test.", **more}
    lines = [f"{key}: {value}" for key, value in head.items()]
    (place / "it.yml").write_text("\n".join([*lines, f"parameters: {parameters}", f"steps: [{steps}]"]))
    return Registry.load(directory)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("{id: one, type: shell_command}", "shell_command"),
        ("{id: one, type: bigquery_query, sql: missing.sql}", "missing.sql is missing"),
        ("{id: one, type: bigquery_query, sql: broken.sql}", "broken.sql is not valid"),
        ("{id: one, type: bigquery_query, sql: ../../../secret.sql}", "pattern"),
        ("{id: one, type: bigquery_query, sql: good.sql, depends_on: [two]}", "two, which there is not"),
        (f"{QUERY}, {QUERY}", "same id"),
        (
            f"{QUERY[:-1]}, depends_on: [b]}}, {QUERY.replace('one', 'b')[:-1]}, depends_on: [one]}}",
            "in a circle",
        ),
        ("{id: one, type: bigquery_query, sql: good.sql, retrys: 3}", "retrys"),
        ("{id: one, type: bigquery_query, sql: good.sql, timeout_s: 0}", "timeout_s"),
        ("{id: tell, type: notify}, " + QUERY, "notify steps stand after all others"),
        ("{id: q, type: data_quality, expectations: [{check: row_count}]}", "need a table"),
        ("{id: q, type: data_quality, table: t, expectations: [{check: magic}]}", "magic"),
        (
            f"{QUERY[:-1]}, destination: {{table: t, layout: focus_cost, write: replace_partition}}}}",
            "takes key and values",
        ),
        ("", "steps"),
    ],
)
def test_a_bad_template_stops_the_start_and_names_its_file(tmp_path, steps, sentence):
    with pytest.raises(TemplateError) as error:
        load(tmp_path, steps)
    assert sentence in str(error.value)
    assert "it.yml" in str(error.value)


@pytest.mark.parametrize(
    "parameters",
    [
        "{a: {type: blob}}",
        "{a: {type: int, default: many}}",
        "{a: {type: date, default: 2025-13-01}}",
        "{a: {kind: int}}",
    ],
)
def test_a_bad_parameter_type_or_default_stops_the_start(tmp_path, parameters):
    with pytest.raises(TemplateError, match=r"it\.yml"):
        load(tmp_path, QUERY, parameters)


@pytest.mark.parametrize("more", [{"id": "gcp-test-other"}, {"colour": "red"}, {"provider": "aws"}, {"version": "0"}])
def test_a_head_that_does_not_fit_its_place_stops_the_start(tmp_path, more):
    with pytest.raises(TemplateError, match=r"it\.yml"):
        load(tmp_path, QUERY, **more)


def test_shipped_templates_are_found_whatever_the_case():
    registry = Registry.load()
    places = [(t.provider, t.domain, t.name) for t in registry.all()]
    assert places == [
        ("aws", "cost", "focus_import"),
        ("azure", "cost", "focus_import"),
        ("gcp", "cost", "cost_billing"),
        ("gcp", "example", "dryrun"),
        ("oci", "cost", "focus_import"),
    ]
    assert registry.find("GCP", "Cost", "COST_billing").pipeline_id == "gcp-cost-cost_billing"
    assert registry.find("azure", "cost", "focus_import").id == "azure-cost-focus_import"
    assert registry.find("gcp", "cost", "../cost_billing") is None


def test_steps_come_after_those_they_depend_on(tmp_path):
    steps = [
        "{id: last, type: bigquery_query, sql: good.sql, depends_on: [middle, first]}",
        "{id: middle, type: bigquery_query, sql: good.sql, depends_on: [first]}",
        "{id: alone, type: bigquery_query, sql: good.sql}",
        "{id: first, type: bigquery_query, sql: good.sql}",
    ]
    template = load(tmp_path, ", ".join(steps)).all()[0]
    assert [step.id for step in template.ordered_steps] == ["alone", "first", "middle", "last"]


PARAMETERS = """{
  table: {type: table, default: export_*}, days: {type: int, default: 1, minimum: 0, maximum: 9},
  since: {type: date}, deep: {type: bool, default: false}, note: {type: string, default: "", max_length: 5}}"""


def test_parameters_are_coerced_completed_and_stay_the_same_when_checked_again(tmp_path):
    template = load(tmp_path, QUERY, PARAMETERS).all()[0]
    given = {"since": date(2025, 11, 17), "days": "3", "deep": "true"}
    values = template.check(given)
    assert values == {"table": "export_*", "days": 3, "since": "2025-11-17", "deep": True, "note": ""}
    assert template.check(values) == values


@pytest.mark.parametrize(
    "wrong",
    [
        {"days": 10},
        {"days": True},
        {"days": "1; DROP TABLE x"},
        {"days": 1.5},
        {"since": "yesterday CANARY"},
        {"deep": "CANARY"},
        {"note": "CANARY"},
        {"note": 5},
        {"table": "x` WHERE 1=1 -- CANARY"},
        {"table": "a.b.CANARY"},
        {"table": ""},
        {"table": "a*b"},
        {"table": "t$20250101"},
        {"CANARY": 1},
    ],
)
def test_wrong_parameters_are_refused_without_repeating_them(tmp_path, wrong):
    template = load(tmp_path, QUERY, PARAMETERS).all()[0]
    with pytest.raises(ValueError) as error:
        template.check({"since": "2025-11-17", **wrong})
    assert "CANARY" not in str(error.value)
    assert "DROP" not in str(error.value)


def test_a_parameter_without_default_must_be_given(tmp_path):
    template = load(tmp_path, QUERY, PARAMETERS).all()[0]
    with pytest.raises(ValueError, match="since is missing"):
        template.check({})


HOSTILE = [
    "",
    "a`b",
    "a.b",
    "a b",
    "a;b",
    "a'b",
    "a\nb",
    "a--b\n",
    "a/*b*/",
    "ä",
    "a\x00",
    "a$1",
    "a@b",
    5,
    None,
    "x" * 2000,
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("kind", [identifiers.project, identifiers.dataset, identifiers.table, identifiers.column])
def test_no_name_is_more_than_a_name(kind, name):
    with pytest.raises(ValueError):
        kind(name)


def test_names_that_there_are():
    assert identifiers.quoted_table("gac-prod-471220", "acme_corp", "gcp_billing_export_v1_01-2") == (
        "`gac-prod-471220.acme_corp.gcp_billing_export_v1_01-2`"
    )
    assert identifiers.project("example.com:my-project") == "example.com:my-project"
