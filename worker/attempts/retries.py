"""Waits out a store that is away for a moment, at the end of a job that may have computed for an hour.

Knows errors and time. Does not know what is stored, or where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rq.timeouts import BaseTimeoutException
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_delay, wait_exponential

from salem.errors import Unavailable

PATIENCE_S = 60.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 1.0  # the lease may have run out meanwhile: be there before the reconciler looks

P = ParamSpec("P")
T = TypeVar("T")


def patiently(call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """The outcome of a call that may be made again, which it is while a store does not answer.

    Raises:
        Unavailable: it did not within `PATIENCE_S`, or the job's time ended in the middle of the call.
    """
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, Unavailable) and not timed_out(error)),
        wait=wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
        stop=stop_after_delay(PATIENCE_S),
        before_sleep=before_sleep_log(logging.getLogger("salem.worker"), logging.WARNING),
        reraise=True,
    )
    return retrying(call, *args, **more)


def timed_out(error: BaseException) -> bool:
    """Whether the job's time ended: if in the middle of a call to a store, another error may stand for it."""
    while not isinstance(error, BaseTimeoutException):
        before = error.__cause__ or error.__context__
        if before is None:
            return False
        error = before
    return True
