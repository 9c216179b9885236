"""As much of Flower as the app touches, in one process: messages are carried by threads. No test lives here.

What a real Flower does with the app is in test_flower.py; here are the losses that it cannot be told to have.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from confide.net import flower


@dataclass
class Array:
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


class Message:
    def __init__(self, content, dst_node_id=0, message_type="", ttl=None, reply_to=None, error=None):
        self.content, self.node, self.ttl, self.error = content, dst_node_id, ttl, error
        self.metadata = SimpleNamespace(reply_to_message_id=reply_to.message_id if reply_to else "")
        self.message_id = ""

    def has_error(self) -> bool:
        return self.error is not None


class Decorating:
    """Stands for ClientApp and ServerApp, whose decorators give the function back."""

    def query(self):
        return lambda function: function

    main = query


@dataclass
class Grid:
    """Carries messages to the ClientApps of its nodes.

    Args:
        app: the app's module.
        sockets: each node's socket, by node id: who is online.
        lost: how many pushes the SuperLink shall refuse from now on.
    """

    app: Any
    sockets: dict[int, Path]
    lost: int = 0
    pushed: int = 0
    replies: dict[str, Message] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)
    numbers: Any = field(default_factory=itertools.count)

    def get_node_ids(self) -> list[int]:
        return list(self.sockets)

    def push_messages(self, messages: list[Message]) -> list[str | None]:
        return [self.push(message) for message in messages]

    def push(self, message: Message) -> str | None:
        if self.lost:
            self.lost -= 1
            return None
        self.pushed += 1
        message.message_id = str(next(self.numbers))
        self.threads.append(threading.Thread(target=self.process, args=(message,)))
        self.threads[-1].start()
        return message.message_id

    def process(self, message: Message) -> None:
        context = SimpleNamespace(node_config={"confide-socket": str(self.sockets[message.node])})
        try:
            reply = self.app.hand_over(message, context)
        except (OSError, KeyError) as error:
            reply = Message({}, reply_to=message, error=SimpleNamespace(reason=f"{type(error)}:<'{error}'>"))
        self.replies[message.message_id] = reply

    def pull_messages(self, message_ids: list[str]) -> list[Message]:
        return [self.replies.pop(each) for each in message_ids if each in self.replies]


def load_app(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the app, loaded over this Flower."""
    contents = {
        "flwr.app": {"Array": Array, "ArrayRecord": dict, "Context": Any, "Message": Message, "RecordDict": dict}
        | {"MessageType": SimpleNamespace(QUERY="query")},
        "flwr.clientapp": {"ClientApp": Decorating},
        "flwr.serverapp": {"Grid": Grid, "ServerApp": Decorating},
    }
    for name, parts in {"flwr": {}, **contents}.items():
        module = ModuleType(name)
        vars(module).update(parts)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("flower_app", Path(flower.__file__).with_name("flower_app.py"))
    assert spec is not None
    assert spec.loader is not None
    app = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(app)
    monkeypatch.setattr(app, "_PLACES_SECONDS", 0.1)
    monkeypatch.setattr(app, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(app, "_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(app, "_CLIENT_PATIENCE_SECONDS", 0.2)
    return app
