"""A broker that stops behind its audit: `python stalled.py KEYS POLICY AUDIT`; no answer about a key ever leaves."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from confide.crypto.random import SystemRandomness
from confide.serve.broker import LIMITS, BrokerServer
from confide.serve.key_store import KeyStore
from confide.serve.listen import serve
from confide.tee.audit import AuditFile
from confide.tee.broker import Broker, BrokerKeys
from confide.tee.policy import read_policy


class Stalled:
    """The application, whose answers to releases stay here."""

    certificates = False
    limits = LIMITS

    def __init__(self, app: BrokerServer) -> None:
        self._app = app

    async def __call__(self, scope, receive, send) -> None:
        async def keep(event) -> None:
            if scope["path"].startswith("/v1/release/"):
                print("an answer is ready", flush=True)
                await asyncio.sleep(3600)
            await send(event)

        await self._app(scope, receive, send if scope["type"] == "lifespan" else keep)


def main(keys: str, policy: str, audit: str) -> None:
    store = KeyStore(Path(keys), lifetime_seconds=None)
    rng = SystemRandomness()
    broker = Broker(read_policy(policy), BrokerKeys(store), AuditFile(audit), rng=rng, allow_simulated=True)
    serve(Stalled(BrokerServer(broker, rng=rng)), port=0, ready=lambda url: print(url, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
