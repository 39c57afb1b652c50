"""A customer's scheduled pipelines: configured, changed, removed."""

from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from application.command import Command, Identifier, Request, new_id
from application.platform import Platform, Transaction
from application.ports import Catalogue, Template
from domain.customer import MAX_PIPELINES, Customer
from domain.customer_events import Pipeline
from domain.refusals import Invalid, NotFound
from domain.schedule import Schedule, next_slot, parse

Cron = Annotated[str, StringConstraints(max_length=100)]
Zone = Annotated[str, StringConstraints(max_length=64)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")]
Offset = Annotated[int, Field(ge=0, le=366)]
CatchUp = Literal["latest", "all", "none"]
Overlap = Literal["queue", "skip", "cancel_running"]
Jitter = Annotated[int, Field(ge=0, le=3600)]


class NewPipeline(Request):
    """What to run, and when.

    `date_offset_days`: how many days before its slot a run's `date` lies. `jitter_seconds`: a pipeline starts up to so
    much later than its slots, always by the same time.
    """

    provider: Name
    domain: Name
    pipeline_template: Name
    schedule_cron: Cron
    timezone: Zone = "UTC"
    is_active: bool = True
    parameters: dict[str, Any] = Field(default_factory=dict)
    date_offset_days: Offset = 1
    catch_up: CatchUp = "latest"
    overlap: Overlap = "queue"
    jitter_seconds: Jitter = 0


class ConfigurePipeline(NewPipeline, Command):
    customer_id: str
    config_id: Identifier = Field(default_factory=new_id)


def known_template(catalogue: Catalogue, provider: str, domain: str, name: str) -> Template:
    """The template of that name; raises `NotFound`."""
    template = catalogue.find(provider, domain, name)
    if template is None:
        raise NotFound("No such pipeline template. GET /api/v1/pipelines/templates lists them.")
    return template


def checked_parameters(template: Template, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters as given, once the template has accepted them; raises `Invalid`."""
    try:
        template.check(parameters)
    except ValueError as error:
        raise Invalid(str(error)) from None
    return parameters


def configure_pipeline(command: ConfigurePipeline, platform: Platform, catalogue: Catalogue) -> str:
    """Schedule a pipeline; returns its config_id. Raises `Invalid` for what is wrong.

    Asking again with the same config_id finds the same pipeline.
    """
    template = catalogue.find(command.provider, command.domain, command.pipeline_template)
    if template is None:
        raise Invalid("No such pipeline template. GET /api/v1/pipelines/templates lists them.")
    schedule = parse(command.schedule_cron, command.timezone)
    pipeline = Pipeline(
        provider=command.provider.upper(),
        domain=command.domain.upper(),
        template=command.pipeline_template.lower(),
        cron=schedule.cron,
        timezone=schedule.timezone,
        is_active=command.is_active,
        parameters=checked_parameters(template, command.parameters),
        date_offset_days=command.date_offset_days,
        catch_up=command.catch_up,
        overlap=command.overlap,
        jitter_seconds=command.jitter_seconds,
    )

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        if command.config_id not in state.pipelines:
            customer.append(state.configure_pipeline(command.config_id, pipeline, next_slot(schedule, command.at)))

    platform.once(command, work)
    return command.config_id


def upcoming(customer: Customer, at: datetime) -> dict[str, datetime]:
    """The first slot after `at` of every active pipeline."""
    return {
        config_id: next_slot(Schedule(pipeline.cron, pipeline.timezone), at)
        for config_id, pipeline in customer.pipelines.items()
        if pipeline.is_active
    }


class PipelineChange(Request):
    """Only what is given changes."""

    schedule_cron: Cron | None = None
    timezone: Zone | None = None
    is_active: bool | None = None
    parameters: dict[str, Any] | None = None
    date_offset_days: Offset | None = None
    catch_up: CatchUp | None = None
    overlap: Overlap | None = None
    jitter_seconds: Jitter | None = None


class ChangePipeline(PipelineChange, Command):
    customer_id: str
    config_id: str


def change_pipeline(command: ChangePipeline, platform: Platform, catalogue: Catalogue) -> None:
    """Another schedule, zone, state or parameters.

    The next slot is the first after this moment. A slot that is due already is lost to another schedule or a rest only.
    """

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        state = customer.must("No such customer.")
        now = state.pipeline(command.config_id)
        schedule = parse(command.schedule_cron or now.cron, command.timezone or now.timezone)
        changed = replace(
            now,
            cron=schedule.cron,
            timezone=schedule.timezone,
            is_active=now.is_active if command.is_active is None else command.is_active,
            date_offset_days=now.date_offset_days if command.date_offset_days is None else command.date_offset_days,
            catch_up=command.catch_up or now.catch_up,
            overlap=command.overlap or now.overlap,
            jitter_seconds=now.jitter_seconds if command.jitter_seconds is None else command.jitter_seconds,
        )
        if command.parameters is not None:
            template = known_template(catalogue, now.provider, now.domain, now.template)
            changed = replace(changed, parameters=checked_parameters(template, command.parameters))
        slot = next_slot(schedule, command.at)
        if (now.cron, now.timezone, now.is_active) == (changed.cron, changed.timezone, changed.is_active):
            due = tx.session.due_pipelines([command.customer_id], command.at, MAX_PIPELINES)
            slot = next((d.next_run_time for d in due if d.config_id == command.config_id), slot)
        customer.append(state.change_pipeline(command.config_id, changed, slot))

    platform.once(command, work)


class RemovePipeline(Command):
    customer_id: str
    config_id: str


def remove_pipeline(command: RemovePipeline, platform: Platform) -> None:
    """The pipeline is scheduled no more; its runs stay in the history."""

    def work(tx: Transaction) -> None:
        customer = tx.held_customer(command.customer_id)
        customer.append(customer.must("No such customer.").remove_pipeline(command.config_id))

    platform.once(command, work)
