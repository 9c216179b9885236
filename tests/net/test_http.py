"""The HTTP driver keeps the rules of `wire.run`: same outputs, saves before sends, one round and no more."""

from __future__ import annotations

import asyncio

import httpx2
import numpy as np
import pytest

from confide.crypto.random import SeededRandomness
from confide.errors import Aborted, ProtocolError
from confide.ideal import PlainPredict
from confide.net.http import InProcess, Reply, answer, ask, expects_message, is_loopback
from confide.wire import MemoryStore, Message, Step, run
from serve.toy import GRAPH, Toy

X = np.array([[0.5, -0.25, 1.0], [0.0, 1.0, -1.0]])


class Log(MemoryStore):
    """A store that writes down when it is written to."""

    def __init__(self, events: list[str], name: str) -> None:
        super().__init__()
        self.events, self.name = events, name

    def commit(self, changes):
        self.events.append(f"{self.name} saves {', '.join(sorted(changes))}")
        super().commit(changes)


def over_http(backend, x, stores, events=None):
    """Drive both sides as a client and a server over HTTP would."""
    rng = SeededRandomness("http")
    kits = backend.prepare(GRAPH, rng)

    def post_to(stage, *inputs):
        def post(message: Message) -> Reply:
            if events is not None:
                events.append(f"client sends {message.tag}")
            answered = answer(
                getattr(backend, stage)("server", kits["server"], *inputs, stores["server"], rng),
                message.body,
                store=stores["server"],
            )
            if events is not None:
                events.append("server replies")
            return Reply(answered.body, 0.25)

        return post

    made = ask(backend.setup("client", kits["client"], stores["client"], rng), post_to("setup"), store=stores["client"])
    asked = ask(
        backend.predict("client", kits["client"], x, stores["client"], rng),
        post_to("predict", None),
        store=stores["client"],
    )
    return made, asked


@pytest.mark.parametrize("backend", [PlainPredict(), Toy()], ids=lambda backend: backend.name)
def test_gives_the_outputs_of_the_deterministic_driver(backend):
    stores = {"client": MemoryStore(), "server": MemoryStore()}
    made, asked = over_http(backend, X, stores)
    rng = SeededRandomness("http")
    kits, other = backend.prepare(GRAPH, rng), {"client": MemoryStore(), "server": MemoryStore()}
    first = run({role: backend.setup(role, kits[role], other[role], rng) for role in other}, stores=other)
    second = run(
        {role: backend.predict(role, kits[role], X if role == "client" else None, other[role], rng) for role in other}
    )
    assert made.output("client") == first.output("client")
    assert [(m.src, m.dst, m.tag, m.body) for m in made.messages] == [
        (m.src, m.dst, m.tag, m.body) for m in first.messages
    ]
    assert np.array_equal(asked.output("client"), second.output("client"))
    assert np.array_equal(asked.output("client"), GRAPH.apply(X))
    assert asked.sizes == second.sizes
    assert asked.depth == second.depth == 2


def test_the_transcript_has_both_messages_and_both_sides_seconds():
    _, asked = over_http(PlainPredict(), X, {"client": MemoryStore(), "server": MemoryStore()})
    assert [message.src for message in asked.messages] == ["client", "server"]
    assert asked.bytes_sent("client") == len(asked.messages[0].body) > X.nbytes
    assert asked.seconds("server") == 0.25
    assert asked.seconds("client") > 0
    assert asked.cost(latency_seconds=1.0, bandwidth_bps=1e12) > 2.25


def test_saves_before_anything_leaves():
    events: list[str] = []
    stores = {"client": Log(events, "client"), "server": Log(events, "server")}
    made, _ = over_http(Toy(), X, stores, events)
    key_id = made.output("client")
    assert events[:4] == ["client saves secret", "client sends toy/key", f"server saves {key_id}", "server replies"]


def test_a_failed_save_sends_nothing():
    class Full(MemoryStore):
        def commit(self, changes):
            raise OSError("disk full")

    kit = Toy().prepare(GRAPH, SeededRandomness("x"))["client"]
    with pytest.raises(OSError, match="disk full"):
        ask(Toy().setup("client", kit, Full(), SeededRandomness("x")), pytest.fail, store=Full())


def test_a_party_that_asks_nothing_makes_no_request():
    made, _ = over_http(PlainPredict(), X, {"client": MemoryStore(), "server": MemoryStore()})
    assert made.messages == []
    assert made.output("client") == "plain"


def test_says_whether_a_message_is_expected():
    kit = Toy().prepare(GRAPH, SeededRandomness("x"))["server"]
    assert expects_message(Toy().setup("server", kit, MemoryStore(), SeededRandomness("x")))
    assert not expects_message(PlainPredict().setup("server", kit, MemoryStore(), SeededRandomness("x")))


def message(tag: str = "t", src: str = "client", dst: str = "server") -> Message:
    return Message(src, dst, tag, b"body")


def speaks_first():
    yield Step(send=(message(src="server", dst="client"),), await_tag="t", wait_for=("client",))


def waits_twice():
    yield Step(await_tag="t", wait_for=("client",))
    yield Step(send=(message(src="server", dst="client"),), await_tag="u", wait_for=("client",))


def never_replies():
    yield Step(await_tag="t", wait_for=("client",))


def replies_twice():
    yield Step(await_tag="t", wait_for=("client",))
    yield Step(send=(message("a"), message("b")))


def waits_for_two():
    yield Step(await_tag="t", wait_for=("client", "dealer"))


def aborts():
    yield Step(await_tag="t", wait_for=("client",))
    raise Aborted("no")


def ends_at_once():
    return 1
    yield


@pytest.mark.parametrize(
    "party", [speaks_first, waits_twice, never_replies, replies_twice, waits_for_two, aborts, ends_at_once]
)
def test_a_server_of_more_or_less_than_one_round_is_refused(party):
    with pytest.raises(ProtocolError):
        answer(party(), b"body", store=MemoryStore())


def asks_two():
    yield Step(send=(message("a"), message("b")), await_tag="r", wait_for=("server",))


def waits_first():
    yield Step(await_tag="r", wait_for=("server",))


def asks_again():
    yield Step(send=(message(),), await_tag="r", wait_for=("server",))
    yield Step(send=(message(),), await_tag="s", wait_for=("server",))


def asks_and_leaves():
    yield Step(send=(message(),))


@pytest.mark.parametrize("party", [asks_two, waits_first, asks_again, asks_and_leaves])
def test_a_client_of_more_or_less_than_one_round_is_refused(party):
    with pytest.raises(ProtocolError):
        ask(party(), lambda message: Reply(b"", 0.0), store=MemoryStore())


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("::", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("", False),
    ],
)
def test_knows_this_machine(host, loopback):
    assert is_loopback(host) is loopback


async def echo(scope, receive, send):
    event = await receive()
    await asyncio.sleep(0)
    headers = [(b"x-path", scope["path"].encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": event["body"] * 2})


def test_in_process_carries_the_same_bytes():
    transport = InProcess(echo)
    with httpx2.Client(transport=transport, base_url="http://localhost") as client:
        for body in (b"", b"abc", bytes(range(256)) * 1000):
            response = client.post("/some/path", content=body)
            assert response.content == body * 2
            assert response.headers["x-path"] == "/some/path"
    transport.close()  # a second time is harmless
