"""Serves the model of the tests in a process of its own: `python host.py JSON`; prints the URL when it is ready."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from confide.ideal import PlainPredict
from confide.model.graph import Graph, Linear
from confide.serve.keys import open_stores
from confide.serve.limits import Limits
from confide.serve.listen import serve
from confide.serve.pool import create_pooled_app
from confide.serve.served import Model
from confide.serve.server import create_app
from confide.serve.source import Source
from serve.toy import GRAPH, LABEL, Odd, Toy, toy_model


def models(argument: bytes) -> list[Model]:
    """Return the models; worker processes call it too."""
    made = [toy_model("diagnosis", Toy(), PlainPredict())]
    if b"wide" in argument:
        made.append(Model("wide", Graph((Linear(np.ones((500, 1)), np.zeros(500)),)), LABEL, (PlainPredict(),)))
    if b"odd" in argument:
        made.append(Model("odd", GRAPH, LABEL, (Odd(),)))
    return made


def main(settings: dict) -> None:
    limits = Limits(**settings.get("limits", {}))
    log = Path(settings["log"]).open("a") if "log" in settings else None  # noqa: SIM115 (for the life of the process)
    argument = b" ".join(name.encode() for name in ("wide", "odd") if settings.get(name))
    shared = {"limits": limits, "log": log, "metrics": settings.get("metrics", False)}
    shared |= {"api_keys": settings.get("api_keys"), "certificates": "client_ca" in settings}
    if settings.get("processes"):
        app = create_pooled_app(Source("serve.host:models", argument), store=settings["store"], **shared)
    else:
        stores = open_stores(settings.get("store"), limits)
        app = create_app(models(argument), store=stores.keys, usage=stores.usage, **shared)
    tls = {name: Path(settings[name]) for name in ("certificate", "private_key", "client_ca") if name in settings}
    share = settings.get("share_port", False)
    serve(app, port=settings.get("port", 0), share_port=share, ready=lambda url: print(url, flush=True), **tls)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
