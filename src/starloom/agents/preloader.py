"""Loads models ahead, in a thread beside those that run stages, so that no stage waits for a slot because of it.

The core says when: one kind at a time, and only while no attempt of another kind waits for a slot. The thread has no lower
priority of the system's: a stage that starts meanwhile waits for what is being loaded, and a process without privileges
could not raise the priority again.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial

from starloom.agents.execution import ModelsFactory, StageLookup
from starloom.agents.preloads import Wish
from starloom.agents.stage import CancelToken
from starloom.agents.workers import Began, Ended, Workers
from starloom.dag.errors import Cancelled

_log = logging.getLogger(__name__)


class Preloader:
    """The shell of `preloads.Preloads`; `done` is called on the event loop when a load is over, however it went."""

    def __init__(self, stages: StageLookup, models: ModelsFactory, done: Callable[[], None], name: str) -> None:
        self._stages = stages
        self._models = models
        self._done = done
        self._name = name
        self._workers: Workers[Wish] | None = None
        self._cancel = CancelToken()

    def begin(self, wish: Wish) -> None:
        """Begins to load; the one before is over."""
        if self._workers is None:
            self._workers = Workers(1, self._told, self._name)
        self._cancel = CancelToken()
        self._workers.submit(wish, partial(self._load, wish, self._cancel))

    def cancel(self) -> None:
        """Stops what is being loaded, between one model and the next."""
        self._cancel.cancel()

    async def stop(self, seconds: float) -> bool:
        """Ends the thread; whether it ended within `seconds`."""
        self.cancel()
        return self._workers is None or await self._workers.stop(seconds)

    def _load(self, wish: Wish, cancel: CancelToken) -> None:
        """The failure is no attempt's: it comes again, and is told, when one runs."""
        try:
            cancel.raise_if_cancelled()
            stage = self._stages.stage(wish.kind)
            models = self._models(cancel, wish.target)
            try:
                stage.load(models, wish.target)
            except BaseException:
                models.close()
                raise
            models.close(wish.kind)
        except Cancelled:
            _log.debug("%s on %s is not loaded ahead: nobody waits for it any more", wish.kind, wish.target)
        # A stage may raise anything, SystemExit included, and must not end the thread.
        except BaseException as error:
            _log.info("%s on %s could not be loaded ahead: %r", wish.kind, wish.target, error)

    def _told(self, events: Sequence[Began[Wish] | Ended[Wish]]) -> None:
        for event in events:
            if isinstance(event, Ended):
                self._done()
