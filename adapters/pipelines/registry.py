"""The templates there are, read once and checked whole, so that a mistake in one stops the start and not a run."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from jinja2 import Environment, TemplateSyntaxError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapters.pipelines import parameters
from adapters.pipelines.data_quality import DataQualityStep
from adapters.pipelines.extract_load import ExtractLoadStep
from adapters.pipelines.notify import NotifyStep
from adapters.pipelines.parameters import Parameter
from adapters.pipelines.query import QueryStep
from adapters.pipelines.step import Name

SHIPPED = Path(__file__).with_name("templates")

AnyStep = Annotated[QueryStep | ExtractLoadStep | DataQualityStep | NotifyStep, Field(discriminator="type")]
_Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,62}$")]


class TemplateError(ValueError):
    """A template that cannot be used. The text names its file."""


class Template(BaseModel):
    """One pipeline. `provider`, `domain` and `name` are its place in the registry, `directory` holds its SQL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    version: int = Field(ge=1)
    description: str
    provider: _Slug
    domain: _Slug
    name: _Slug
    also_for: tuple[_Slug, ...] = ()
    parameters: Mapping[Name, Parameter] = Field(default_factory=dict)
    steps: tuple[AnyStep, ...] = Field(min_length=1)
    directory: Path

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.id != self.pipeline_id:
            raise ValueError(f"id is not {self.pipeline_id}, as the file's place says")
        known = {step.id for step in self.steps}
        if len(known) != len(self.steps):
            raise ValueError("two steps have the same id")
        for step in self.steps:
            if unknown := set(step.depends_on) - known:
                raise ValueError(f"step {step.id} depends on {min(unknown)}, which there is not")
            for file in step.sql_files:
                _check_sql(self.directory / file)
        ends = [isinstance(step, NotifyStep) for step in self.steps]
        if ends != sorted(ends):
            raise ValueError("notify steps stand after all others")
        try:
            self._order()
        except CycleError as error:
            raise ValueError(f"steps depend on each other in a circle: {' → '.join(error.args[1])}") from None
        return self

    @property
    def pipeline_id(self) -> str:
        """What runs of it are logged under."""
        return f"{self.provider}-{self.domain}-{self.name}"

    @property
    def ordered_steps(self) -> Sequence[AnyStep]:
        """The steps, each after those that it depends on, and otherwise as the file has them."""
        steps = {step.id: step for step in self.steps}
        return [steps[name] for name in self._order()]

    def check(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """A run's parameters, coerced and completed with defaults, as plain JSON values.

        Raises `ValueError` with a sentence that repeats nothing of what was given.
        """
        return parameters.check(self.parameters, given)

    def _order(self) -> Sequence[str]:
        place = {step.id: index for index, step in enumerate(self.steps)}
        sorter = TopologicalSorter({step.id: step.depends_on for step in self.steps})
        sorter.prepare()
        ready = list(sorter.get_ready())
        order: list[str] = []
        while ready:
            ready.sort(key=place.__getitem__)
            order.append(ready.pop(0))
            sorter.done(order[-1])
            ready += sorter.get_ready()
        return order


class Registry:
    """Every template under its provider, domain and name."""

    def __init__(self, templates: Sequence[Template]) -> None:
        self._templates = {(t.provider, t.domain, t.name): t for t in templates}

    @classmethod
    def load(cls, directory: Path = SHIPPED) -> Self:
        """Read `{provider}/{domain}/{name}.yml` below `directory`. Raises `TemplateError` for the first bad one."""
        found: list[Template] = []
        for file in sorted(directory.glob("*/*/*.yml")):
            template = _read(file)
            others = [_read(file, provider=provider) for provider in template.also_for]
            found += [template, *others]
        registry = cls(found)
        if len(registry._templates) != len(found):
            raise TemplateError(f"Two templates below {directory} have the same provider, domain and name.")
        return registry

    def find(self, provider: str, domain: str, name: str) -> Template | None:
        """The template of that place, whatever the case of its parts, or None."""
        return self._templates.get((provider.lower(), domain.lower(), name.lower()))

    def all(self) -> Sequence[Template]:
        """Every template, by place."""
        return [self._templates[place] for place in sorted(self._templates)]


def _read(file: Path, provider: str | None = None) -> Template:
    domain = file.parent.name
    try:
        content = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise TemplateError(f"Template {file} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise TemplateError(f"Template {file} is not a mapping.")
    place = {
        "provider": provider or file.parent.parent.name,
        "domain": domain,
        "name": file.stem,
        "directory": file.parent,
    }
    if overlap := content.keys() & place.keys():
        raise TemplateError(f"Template {file}: {min(overlap)} follows from the file's place.")
    if provider is not None:
        content["id"] = f"{provider}-{domain}-{file.stem}"
    try:
        return Template.model_validate({**content, **place})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'template'}: {item['msg']}" for item in error.errors()
        )
        raise TemplateError(f"Template {file}: {problems}.") from None


def _check_sql(file: Path) -> None:
    try:
        Environment(autoescape=False).parse(file.read_text("utf-8"))  # noqa: S701 - SQL, and only parsed
    except FileNotFoundError:
        raise ValueError(f"the SQL file {file.name} is missing") from None
    except TemplateSyntaxError as error:
        raise ValueError(f"the SQL file {file.name} is not valid: {error.message}, line {error.lineno}") from None
