"""`AsyncClient`: the same client for an event loop, with several questions under way at a time.

The steps are those of `Client`, carried out by awaiting. What computes (keys, encryption, decryption) runs on threads,
so the loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from confide.crypto.random import Randomness
from confide.errors import UsageError
from confide.guarantee import Guarantee, PrivacyLabel
from confide.model import links
from confide.model.preprocess import Preprocess
from confide.serve.client import GIVE_UP_SECONDS, RETRIES, TIMEOUT_SECONDS, asking, refuse_policy, report, wanted_of
from confide.serve.connect import Address, send_async
from confide.serve.effects import Alone, Pause, Result, Send, Steps
from confide.serve.joint import is_joint, joint_asking
from confide.serve.protocol import ClientKit
from confide.serve.session import Columns, Session
from confide.serve.steps import ROWS, Asks, Progress, Unread
from confide.tee.policy import Policy
from confide.wire import Store, Transcript

if TYPE_CHECKING:
    from confide.serve.parties.asking import JointAsking

Matrix = NDArray[np.float64]


class AsyncClient:
    """Asks one model of one server from an event loop. Safe for several tasks of one loop; see `Client`.

    Args:
        url: of the server; it and all that is not named here are as in `Client`.
        transport: instead of the network, for tests (`confide.net.http.InProcess`).

    Example:
        >>> async def ask():  # doctest: +SKIP
        ...     async with AsyncClient("https://models.example.org") as client:
        ...         return await client.predict({"age": [61], "sex": ["f"]})

    **Guarantees** and **Leaks**: as in `Client`.
    """

    _asking: Asks

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        backend: str | None = None,
        store: Store | None = None,
        api_key: str | None = None,
        ca_file: str | Path | None = None,
        certificate: str | Path | None = None,
        private_key: str | Path | None = None,
        encoder: str | Path | None = None,
        kit_sha256: str | None = None,
        signer: str | Path | None = None,
        policy: str | Path | Policy | None = None,
        attester: Literal["simulated"] | None = None,
        insecure_plain_http: bool = False,
        identity: str | Path | None = None,
        insecure_colocated_dealer: bool = False,
        ahead: int = 0,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retries: int = RETRIES,
        give_up_seconds: float = GIVE_UP_SECONDS,
        repeat_questions: bool = False,
        progress: Progress | None = None,
        rng: Randomness | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._alone = asyncio.Lock()
        self._joint: JointAsking | None = None
        if is_joint(url):
            refuse_policy(url, policy, attester)
            self._asking = self._joint = joint_asking(
                url, wanted_of(model, backend, kit_sha256, signer, encoder), identity=identity, store=store, rng=rng,
                progress=progress, timeout_seconds=min(timeout_seconds, give_up_seconds),
                one_machine=insecure_colocated_dealer, ahead=ahead,
            )  # fmt: skip
            self._http = httpx2.AsyncClient()
            return
        address = Address(url, api_key, ca_file, insecure_plain_http, timeout_seconds, certificate, private_key)
        self._asking = asking(
            address, wanted_of(model, backend, kit_sha256, signer, encoder, policy, attester), store=store,
            retries=retries, give_up_seconds=give_up_seconds, repeat_questions=repeat_questions, progress=progress,
            rng=rng,
        )  # fmt: skip
        self._http = httpx2.AsyncClient(**address.settings(), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the keys stay in the store."""
        await self._http.aclose()
        if self._joint is not None:
            await asyncio.to_thread(self._joint.close)

    def costs(self) -> list[str]:
        """Return who answered and what it cost so far; see `Client.costs`."""
        return self._asking.costs()

    # --- what the server says of itself -------------------------------------------------------------------------------

    async def open(self) -> ClientKit:
        """Fetch the kit, unless it is here, and return it. The properties below need it; the first question does it."""
        return (await self._run(self._asking.open())).kit

    @property
    def kit(self) -> ClientKit:
        """Return what the server published for asking this model. Raises UsageError before `open`."""
        return self._session.kit

    @property
    def model(self) -> str:
        """Return the model's name."""
        return self.kit.model

    @property
    def backend(self) -> str:
        """Return the name of the backend in use."""
        return self.kit.backend

    @property
    def guarantee(self) -> Guarantee:
        """Return what asking promises; see `Client.guarantee`."""
        return self.kit.guarantee

    @property
    def label(self) -> PrivacyLabel:
        """Return what the model's training promised; see `Client.label`."""
        return self.kit.label

    @property
    def signer(self) -> str:
        """Return who signed the model; see `Client.signer`."""
        signed = self._session.signed
        return signed.signer if signed else ""

    @property
    def preprocess(self) -> Preprocess | None:
        """Return the public preprocessing; see `Client.preprocess`."""
        return self._session.preprocess

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the outcomes; () if the model names none."""
        return self.kit.classes

    # --- asking -------------------------------------------------------------------------------------------------------

    async def predict(self, x: ArrayLike | Columns) -> Matrix:
        """Return predictions, float64, shape (rows, outputs); see `Client.predict`."""
        return (await self.ask(x)).output("client")

    async def publish(self, x: ArrayLike | Columns) -> Matrix:
        """Return predictions that may be shown to others; see `Client.publish`."""
        return (await self._run(self._asking.ask(x, publish=True))).output("client")

    async def probabilities(self, x: ArrayLike | Columns) -> Matrix:
        """Return the probability of each class, shape (rows, classes); see `Client.probabilities`."""
        return links.probabilities(await self.predict(x), self.kit.link, self.classes)

    async def mean(self, x: ArrayLike | Columns) -> Matrix:
        """Return what the model is about, shape (rows, outputs); see `Client.mean`."""
        return links.mean(await self.predict(x), self.kit.link)

    async def decide(self, x: ArrayLike | Columns) -> list[str]:
        """Return the name of the likeliest outcome of each row. Raises UsageError if the model names no outcomes."""
        if not (await self.open()).classes:
            raise UsageError("Expected a model that names its classes; use predict")
        return links.decide(await self.predict(x), self.kit.link, self.classes)

    async def ask(self, x: ArrayLike | Columns) -> Transcript:
        """Return the transcript of a prediction; see `Client.ask`."""
        return await self._run(self._asking.ask(x))

    async def stream(self, x: ArrayLike | Columns, *, concurrency: int = 1) -> AsyncIterator[Matrix]:
        """Yield predictions in the order of the rows, with up to `concurrency` questions under way.

        Raises:
            As in `Client.stream`.
        """
        if concurrency < 1:
            raise UsageError(f"Expected concurrency={concurrency} of 1 or more")
        session = await self._run(self._asking.open())
        features: Matrix = await asyncio.to_thread(session.features, x)
        async with aclosing(self._parts(session, features, concurrency)) as parts:
            unread: Exception | None = None
            done = 0
            async for rows, part in parts:
                done += rows
                self._asking.progress(done, len(features), ROWS)
                if isinstance(part, Unread):
                    unread = unread or part.error
                elif not unread:
                    yield part.output("client")
        if unread:
            raise unread

    async def _parts(
        self, session: Session, features: Matrix, concurrency: int
    ) -> AsyncGenerator[tuple[int, Transcript | Unread], None]:
        """Yield the answer to each question with its number of rows, in order."""
        await self._run(self._asking.ready(session))  # keys once, before the questions that wait for them
        waiting: deque[tuple[int, asyncio.Task[Transcript]]] = deque()
        begun = 0
        try:
            while begun < len(features) or waiting:
                while begun < len(features) and len(waiting) < concurrency:
                    part = features[begun : begun + session.rows]
                    steps = self._asking.rows(session, part, quiet=True)
                    waiting.append((len(part), asyncio.create_task(self._run(steps))))
                    begun += len(part)
                rows, task = waiting[0]
                try:
                    answer: Transcript | Unread = await task
                except Unread as error:
                    answer = error
                waiting.popleft()
                yield rows, answer
        finally:
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

    async def features(self, x: ArrayLike | Columns) -> Matrix:
        """Return x as the model takes it; see `Client.features`."""
        session = await self._run(self._asking.open())
        return await asyncio.to_thread(session.features, x)

    # --- keys ---------------------------------------------------------------------------------------------------------

    async def setup(self) -> Transcript:
        """Have the keys at the server now; see `Client.setup`."""
        return await self._run(self._asking.setup())

    async def forget(self) -> None:
        """Delete this model's keys at the server and in the store; see `Client.forget`."""
        await self._run(self._asking.forget())

    async def delete_at_server(self, path: str, key_id: str) -> None:
        """Delete public keys at the server; see `Client.delete_at_server`."""
        await self._run(self._asking.delete(path, key_id))

    # --- carrying out -------------------------------------------------------------------------------------------------

    @property
    def _session(self) -> Session:
        session = self._asking.session
        if session is None:
            raise UsageError("Expected an open client; await client.open() first, or ask a question")
        return session

    async def _run(self, steps: Steps[Result]) -> Result:
        """Carry out steps to their end."""
        result: Any = None
        failure: Exception | None = None
        try:
            while True:
                effect = steps.send(result) if failure is None else steps.throw(failure)
                result = failure = None
                try:
                    if isinstance(effect, Send):
                        sent = partial(report, self._asking.progress, effect.what)
                        result = await send_async(self._http, effect, sent)
                    elif isinstance(effect, Pause):
                        await asyncio.sleep(effect.seconds)
                    elif isinstance(effect, Alone):
                        async with self._alone:
                            result = await self._run(effect.steps)
                    else:
                        result = await asyncio.to_thread(effect.job)
                except Exception as error:
                    failure = error
        except StopIteration as stop:
            return stop.value
        finally:
            steps.close()
