"""What the steps of asking want done for them, and the patience with which a request is repeated. No I/O here.

The steps are generators: they yield an effect and are resumed with its result, or with the error it ended in.
`Client` carries effects out one by one, `AsyncClient` awaits them; neither knows the protocol.

    Send    one HTTP request            -> `Received`, whatever its status; raises httpx2.TransportError
    Work    something that computes     -> what it returns
    Pause   time to pass                -> None
    Alone   steps of which one client runs one at a time, such as making keys -> what they return
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpx2

from confide.crypto.random import Randomness
from confide.errors import ConfideError, IntegrityError, UsageError
from confide.net.http import Reply
from confide.serve.protocol import Refusal

MAX_REPLY_BYTES = 1 << 28

_TIMING = re.compile(r"\bwork;dur=(\d{1,9}(?:\.\d{1,9})?)")
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 10.0
_TEMPORARY = frozenset({429, 502, 503, 504})
#: Refusals of a question that come before the server counts it.
_UNCOUNTED = frozenset({"busy", "rate_limited"})

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Send:
    """One HTTP request.

    Args:
        method, path, headers: as HTTP has them.
        content: the body; None sends none.
        max_bytes: of the reply; a driver raises ProtocolError beyond that.
        what: what progress is called while the body leaves; "" reports none.
        meanwhile: something useful of a millisecond to do once the body has left, while the server works.
    """

    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    max_bytes: int = MAX_REPLY_BYTES
    what: str = ""
    meanwhile: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Received:
    """An answer to one request: its status, its headers (names in lower case), its whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def reply(self) -> Reply:
        """Return the body with the seconds that the server says it worked; 0 if it says nothing."""
        timing = _TIMING.search(self.headers.get("server-timing", ""))
        return Reply(self.body, float(timing[1]) / 1e3 if timing else 0.0)


@dataclass(frozen=True, slots=True)
class Pause:
    """Let time pass."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """Compute something that may take long; an event loop goes on meanwhile."""

    job: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Alone:
    """Run `steps` while no other such steps of this client run; they hold no `Alone` themselves."""

    steps: Steps[Any]


Effect = Send | Pause | Work | Alone
Steps = Generator[Effect, Any, Result]


class Patience:
    """Repeats requests that failed for now.

    Args:
        url: of the server, for the texts.
        retries: how often one request is repeated.
        give_up_seconds: time after which a request is not repeated any more, waiting included.
        repeat_questions: True repeats also a question that the server may have counted.
        clock: seconds that only grow.
        rng: for the jitter.

    **Guarantees**: a question is sent again only if the server cannot have counted it: nothing was sent, or it was
    refused before the count. `repeat_questions` gives that up.
    """

    def __init__(
        self,
        url: str,
        *,
        retries: int,
        give_up_seconds: float,
        repeat_questions: bool,
        clock: Callable[[], float],
        rng: Randomness,
    ) -> None:
        if retries < 0 or not give_up_seconds >= 0:
            raise UsageError(f"Expected retries={retries} and give_up_seconds={give_up_seconds} of 0 or more")
        self._url = url
        self._retries = retries
        self._give_up_seconds = give_up_seconds
        self._repeat_questions = repeat_questions
        self._clock = clock
        self._rng = rng
        self._answered = False  # something at this address has spoken HTTP

    def exchange(self, send: Send, *, question: bool = False) -> Steps[Received]:
        """Send a request until it succeeds or is refused for good; returns an answer with status 200.

        Args:
            send: the request.
            question: True if the server counts it.

        Raises:
            Refusal: the server's.
            UsageError, IntegrityError: nobody answers, or not who should.
        """
        begin, attempt = self._clock(), 0
        while True:
            try:
                received: Received = yield send
            except httpx2.TransportError as error:
                failure = self._failure(error, question)
                again, wait = self._lost(error, question), None
            else:
                self._answered = True
                if received.status == 200:
                    return received
                failure = refusal = Refusal.parse(received.status, received.body, received.headers.get("retry-after"))
                again, wait = self._refused(refusal, question), refusal.retry_after_seconds
            seconds = self._wait_seconds(attempt, wait)
            late = self._clock() - begin + seconds > self._give_up_seconds
            if not again or attempt >= self._retries or late:
                raise failure
            yield Pause(seconds)
            attempt += 1

    def _lost(self, error: httpx2.TransportError, question: bool) -> bool:
        """Return True if a request without an answer may be sent again."""
        if "CERTIFICATE_VERIFY_FAILED" in str(error) or isinstance(error, httpx2.UnsupportedProtocol):
            return False
        if isinstance(error, httpx2.ConnectError):
            return self._answered  # before that it is rather a wrong address than a server that starts anew
        return not question or self._repeat_questions or isinstance(error, httpx2.ConnectTimeout | httpx2.PoolTimeout)

    def _refused(self, refusal: Refusal, question: bool) -> bool:
        """Return True if a refused request may be sent again."""
        if refusal.status not in _TEMPORARY or refusal.code == "quota":
            return False
        return not question or self._repeat_questions or refusal.code in _UNCOUNTED

    def _wait_seconds(self, attempt: int, asked: int | None) -> float:
        """Return how long to wait: never less than the server asks for, up to half as long again at random."""
        seconds = min(_LONGEST_WAIT_SECONDS, math.ldexp(_FIRST_WAIT_SECONDS, min(attempt, 10)))
        share = int.from_bytes(self._rng.bytes(4), "little") / 2**32
        return max(seconds, asked or 0) * (1 + share / 2)

    def _failure(self, error: httpx2.TransportError, question: bool) -> ConfideError:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return IntegrityError("Expected a certificate from a known authority; name another one with ca_file")
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return UsageError(f"Expected a server at {self._url}; check that it runs and that the URL is right")
        hint = "ask again later" if self._url.startswith("https") else "if the server speaks TLS, write https://"
        if question and self._answered:
            hint = "the server may have counted the question, so it was not asked again; repeat_questions does that"
        return UsageError(f"Expected an answer, the connection ended first ({type(error).__name__}); {hint}")
