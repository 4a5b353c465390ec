"""Retries while a store is briefly unavailable, so that an hour of work is not lost at its end.

Must not know what is stored or where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from rq.timeouts import BaseTimeoutException
from tenacity import Retrying, before_sleep_log, retry_if_exception, stop_after_delay, wait_exponential

from salem.errors import Unavailable

RETRY_LIMIT_S = 60.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 1.0  # short, so that the job returns before the reconciler finds an expired lease

P = ParamSpec("P")
T = TypeVar("T")


def with_retries(call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Call a function that is safe to repeat, and retry while a store is unavailable.

    Raises:
        Unavailable: the store did not answer within `RETRY_LIMIT_S`, or the job timed out during the call.
    """
    retrying = Retrying(
        retry=retry_if_exception(lambda error: isinstance(error, Unavailable) and not timed_out(error)),
        wait=wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
        stop=stop_after_delay(RETRY_LIMIT_S),
        before_sleep=before_sleep_log(logging.getLogger("salem.worker"), logging.WARNING),
        reraise=True,
    )
    return retrying(call, *args, **more)


def timed_out(error: BaseException) -> bool:
    """Whether the job timed out. During a call to a store, another error may hide the timeout."""
    while not isinstance(error, BaseTimeoutException):
        before = error.__cause__ or error.__context__
        if before is None:
            return False
        error = before
    return True
