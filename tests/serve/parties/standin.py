"""A backend of three roles and several rounds that hides nothing: what a driver is tested with. No test lives here.

The client masks x with r, which the dealer gave to both; the server answers after `ROUNDS` exchanges. Masks that were
dealt ahead lie in the stores under ids that are used once.
"""

from __future__ import annotations

import itertools
import os
import signal

import numpy as np

from confide.errors import ModelError, ProtocolError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Backend
from confide.wire import Message, Step

ROUNDS, BYTES = 5, 3000
#: Which role dies with SIGKILL at which step of what, once: "server/predict/2"; "" for nobody.
DIES = os.environ.get("STANDIN_DIES", "")


def dying(party, role, kind):
    """Return a party whose process may die before it takes a step."""
    received = None
    for number in itertools.count():
        if f"{role}/{kind}/{number}" == DIES:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            step = next(party) if received is None else party.send(received)
        except StopIteration as stop:
            return stop.value
        received = yield step


class Kit:
    def __init__(self, features: int, outputs: int, graph=None) -> None:
        self.features, self.outputs, self.graph = features, outputs, graph

    def encode(self) -> bytes:
        return bytes([self.features, self.outputs])


class Standin(Backend):
    name = "standin"
    roles = ("client", "server", "dealer")
    guarantee = Guarantee(
        claims=frozenset({Claim("query", "server", ("dealer",))}),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.NON_COLLUSION,
        security_bits=128,
        post_quantum=True,
        verified_result=False,
        leaks="Everything: a stand-in.",
        primary="none",
        paper="",
    )

    def check(self, graph):
        return []

    def prepare(self, graph, rng):
        if self.check(graph):
            raise ModelError("no")
        one = (graph.features, graph.outputs)
        return {"client": Kit(*one), "server": Kit(*one, graph), "dealer": Kit(*one)}

    def decode_kit(self, role, body):
        if len(body) != 2:
            raise ProtocolError("Expected a kit of two bytes")
        return Kit(*body)

    def setup(self, role, kit, store, rng):
        return dying(self._setup(role, kit, store, rng), role, "setup")

    def deal(self, role, kit, store, rng, *, rows, count):
        return dying(self._deal(role, kit, store, rng, rows, count), role, "deal")

    def deals_at_a_time(self, kit, *, rows):
        return 64

    def needs_dealer(self, kit, store, *, rows):
        return not any(len(store.get(key)) == 8 * rows * kit.features for key in store.keys("stock/"))

    def _setup(self, role, kit, store, rng):
        others = [one for one in self.roles if one != role]
        for number in range(2):
            tag = f"setup/{number}"
            send = tuple(Message(role, one, tag, bytes([number])) for one in others)
            yield Step(send=send, await_tag=tag, wait_for=tuple(others))
        return "set up"

    def _deal(self, role, kit, store, rng, rows, count):
        size = 8 * rows * kit.features
        if role == "dealer":
            first = store.get("next") or bytes(8)
            after = (int.from_bytes(first, "little") + count).to_bytes(8, "little")
            body = first + rng.bytes(size * count)
            send = tuple(Message(role, one, "deal", body) for one in ("client", "server"))
            yield Step(send=send, save={"next": after})
            return count
        got = yield Step(await_tag="deal", wait_for=("dealer",))
        body = got["dealer"].body
        if len(body) != 8 + size * count:
            raise ProtocolError("Expected what was ordered")
        begin, body = int.from_bytes(body[:8], "little"), body[8:]
        changes = {f"stock/{begin + at:08}": body[at * size : (at + 1) * size] for at in range(count)}
        if role == "server":
            yield Step(send=(Message(role, "client", "stored", b""),), save=changes)
        else:
            yield Step(await_tag="stored", wait_for=("server",))
            yield Step(save=changes)
        return len(store.keys("stock/")) + count

    def predict(self, role, kit, x, store, rng):
        party = {"client": self._client, "server": self._server, "dealer": self._dealer}[role]
        return dying(party(kit, x, store, rng), role, "predict")

    def _client(self, kit, x, store, rng):
        stock = [key for key in store.keys("stock/") if len(store.get(key)) == 8 * x.size]
        used = stock[0] if stock else ""
        size = 0 if stock else 8 * x.size
        begin = Message("client", "server", "begin", used.encode())
        if stock:
            mask = store.get(used)
            yield Step(send=(begin,), save={used: None})
        else:
            need = Message("client", "dealer", "need", size.to_bytes(8, "little"))
            got = yield Step(send=(need, begin), await_tag="mask", wait_for=("dealer",))
            mask = got["dealer"].body
        r = np.frombuffer(mask, "<u8")
        words = (np.rint(x.reshape(-1) * 2**16).astype(np.int64).astype(np.uint64) + r).tobytes()
        for number in range(ROUNDS):
            body = words if number == 0 else bytes(BYTES)
            got = yield Step(
                send=(Message("client", "server", f"round/{number}", body),),
                await_tag=f"round/{number}",
                wait_for=("server",),
            )
            if len(got["server"].body) != BYTES:
                raise ProtocolError("Expected a body of the planned length")
        got = yield Step(await_tag="y", wait_for=("server",))
        body = got["server"].body
        if len(body) != 8 * len(x) * kit.outputs:
            raise ProtocolError("Expected as many outputs as rows")
        return np.frombuffer(body, "<f8").reshape(len(x), kit.outputs)

    def _server(self, kit, x, store, rng):
        got = yield Step(await_tag="begin", wait_for=("client",))
        used = got["client"].body.decode(errors="replace")
        if used:
            mask = store.get(used)
            if mask is None:
                raise ProtocolError("Expected correlations that both have")
            yield Step(save={used: None})
        else:
            got = yield Step(await_tag="mask", wait_for=("dealer",))
            mask = got["dealer"].body
        words = b""
        for number in range(ROUNDS):
            got = yield Step(
                send=(Message("server", "client", f"round/{number}", bytes(BYTES)),),
                await_tag=f"round/{number}",
                wait_for=("client",),
            )
            body = got["client"].body
            if len(body) != (len(mask) if number == 0 else BYTES):
                raise ProtocolError("Expected a body of the planned length")
            words = words or body
        values = (np.frombuffer(words, "<u8") - np.frombuffer(mask, "<u8")).astype(np.int64) / 2**16
        y = kit.graph.apply(values.reshape(-1, kit.features))
        yield Step(send=(Message("server", "client", "y", np.ascontiguousarray(y, "<f8").tobytes()),))
        return len(y)

    def _dealer(self, kit, x, store, rng):
        got = yield Step(await_tag="need", wait_for=("client",))
        size = int.from_bytes(got["client"].body, "little")
        if size > 1 << 20:
            raise ProtocolError("Expected fewer rows")
        if size:
            mask = rng.bytes(size)
            yield Step(send=tuple(Message("dealer", one, "mask", mask) for one in ("client", "server")))
        return size > 0
