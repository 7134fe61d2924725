"""The journeys for locust: `windfire loadtest journeys`, or `locust -f` this file.

The variable WINDFIRE_LOADTEST_CONFIG names the settings (config/loadtest.yaml). Locust is a closed loop: its users
wait for their answers, so that its times leave out what a standing server does to everybody else, and it rounds
percentiles to two digits. It is here for what users do in order; `windfire loadtest run` and `sweep` measure.
"""

from __future__ import annotations

import os
import time
import uuid
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from locust import FastHttpUser, task

from loadtest.journeys import JOURNEYS, JourneyError, Person
from loadtest.settings import LoadSettings

if TYPE_CHECKING:
    from locust.env import Environment

    from loadtest.journeys import Journey, Step

_CONFIG: Final = os.environ.get("WINDFIRE_LOADTEST_CONFIG")
_SETTINGS: Final = LoadSettings.load(Path(_CONFIG) if _CONFIG else None)
_IDS: Final = _SETTINGS.workload.users.source()
_HEADERS: Final = {**_SETTINGS.target().headers, "X-Deadline-Ms": str(round(_SETTINGS.deadline * 1000))}
_RUN: Final = uuid.uuid4().hex[:12]
_NUMBERS: Final = count()


class _Walker(FastHttpUser):
    """Goes on its journey again and again."""

    abstract = True
    host = _SETTINGS.url
    kind = ""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        number = next(_NUMBERS)
        self._generator = np.random.default_rng([_SETTINGS.seed, number])
        work, known = _SETTINGS.workload, self._known
        self._person = Person(self._generator, _RUN, number, known, work.scenes, work.n, _SETTINGS.journeys.pages)

    def wait_time(self) -> float:
        """Seconds of thought between two requests."""
        return float(self._generator.exponential(_SETTINGS.journeys.think)) if _SETTINGS.journeys.think else 0.0

    @task
    def walk(self) -> None:
        """One journey; it ends with its first error."""
        journey = JOURNEYS[self.kind](self._person)
        try:
            self._walk(journey)
        except JourneyError as error:
            self.environment.events.request.fire(
                request_type="CHECK", name=self.kind, response_time=0, response_length=0, exception=error, context={}
            )
        finally:
            journey.close()

    def _walk(self, journey: Journey) -> None:
        step: Step | None = next(journey)
        while step is not None:
            going, answer = self._ask(step)
            if not going:
                return
            time.sleep(self.wait_time())  # gevent's: locust has put it in the place of the library's
            try:
                step = journey.send(answer)
            except StopIteration:
                step = None

    def _ask(self, step: Step) -> tuple[bool, dict[str, Any] | None]:
        with self.client.post(
            step.path, json=step.body, name=step.name, headers=_HEADERS, catch_response=True
        ) as response:
            if response.status_code in step.tolerated:
                response.success()
                return True, None
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return False, None
            return True, response.json()

    def _known(self) -> str:
        return _IDS.name(int(self._generator.integers(_IDS.count)))


class NewVisitor(_Walker):
    """See journeys.new_visitor."""

    kind = "new_visitor"
    weight = _SETTINGS.journeys.weights["new_visitor"]


class ReturningUser(_Walker):
    """See journeys.returning_user."""

    kind = "returning_user"
    weight = _SETTINGS.journeys.weights["returning_user"]


class HeavyScroller(_Walker):
    """See journeys.heavy_scroller."""

    kind = "heavy_scroller"
    weight = _SETTINGS.journeys.weights["heavy_scroller"]
