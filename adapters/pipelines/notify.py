"""Step `notify`: a mail to the people whom the customer named. It never fails its run."""

import logging
from typing import Literal

from adapters.pipelines.attempt import Attempt
from adapters.pipelines.step import Outcome, Step
from application.ports import Away, Mail

_log = logging.getLogger(__name__)


class NotifyStep(Step):
    """`when` the run has failed for good (with no further attempt to come), has succeeded, or always at its end."""

    type: Literal["notify"]
    when: Literal["failure", "success", "always"] = "failure"


def run(step: NotifyStep, attempt: Attempt) -> Outcome:
    """Send the mail if there is an occasion and somebody to write to. Raises nothing but `Stopped`."""
    failed = attempt.failure is not None
    if step.when == ("success" if failed else "failure"):
        return Outcome(skipped=f"The run has {'failed' if failed else 'not failed'}.")
    if failed and attempt.may_come_again:
        return Outcome(skipped="The run will be tried again.")
    people = [str(person) for person in attempt.order.configuration.get("notification_emails") or ()]
    if not people:
        return Outcome(skipped="The provider configuration names no notification_emails.")
    attempt.jobs.checkpoint()
    try:
        attempt.mailer.send(_mail(attempt, people))
    except (Away, ValueError) as error:
        _log.warning("Run %s: its mail was not sent (%s).", attempt.order.run_id, type(error).__name__)
        return Outcome(skipped="The mail could not be sent.", metadata={"recipients": len(people), "sent": False})
    return Outcome(metadata={"recipients": len(people), "sent": True})


def _mail(attempt: Attempt, people: list[str]) -> Mail:
    order = attempt.order
    what = f"{order.provider}/{order.domain}/{order.template}"
    outcome = "succeeded" if attempt.failure is None else "failed"
    lines = [
        f"The pipeline {what} of {order.customer_id} for {order.run_date.isoformat()} has {outcome}.",
        "",
        *([] if attempt.failure is None else [attempt.failure, ""]),
        f"Run: {order.run_id}",
        f"Attempt: {order.attempt}",
        f"Trigger: {order.trigger_type}",
    ]
    return Mail(
        to=people, subject=f"{what} {outcome}: {order.customer_id}, {order.run_date.isoformat()}", text="\n".join(lines)
    )
