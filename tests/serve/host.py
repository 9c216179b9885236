"""Serves the model of the tests in a process of its own: `python host.py JSON`; prints the URL when it is ready."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from confide.ideal import PlainPredict
from confide.model.graph import Graph, Linear
from confide.serve.keys import key_store
from confide.serve.limits import Limits
from confide.serve.listen import serve
from confide.serve.served import Model
from confide.serve.server import create_app
from serve.toy import LABEL, Toy, toy_model


def main(settings: dict) -> None:
    limits = Limits(**settings.get("limits", {}))
    store = key_store(settings.get("store"), limits)
    log = Path(settings["log"]).open("a") if "log" in settings else None  # noqa: SIM115 (for the life of the process)
    models = [toy_model("diagnosis", Toy(), PlainPredict())]
    if settings.get("wide"):
        models.append(Model("wide", Graph((Linear(np.ones((200, 1)), np.zeros(200)),)), LABEL, (PlainPredict(),)))
    app = create_app(models, store=store, limits=limits, log=log)
    tls = {name: Path(settings[name]) for name in ("certificate", "private_key") if name in settings}
    serve(app, port=settings.get("port", 0), ready=lambda url: print(url, flush=True), **tls)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
