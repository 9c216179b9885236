"""Serves the model of the tests in a process of its own: `python host.py JSON`; prints the URL when it is ready."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from confide.ideal import PlainPredict
from confide.serve.keys import key_store
from confide.serve.limits import Limits
from confide.serve.listen import serve
from confide.serve.server import create_app
from serve.toy import Toy, toy_model


def main(settings: dict) -> None:
    limits = Limits(**settings.get("limits", {}))
    store = key_store(settings.get("store"), limits)
    log = Path(settings["log"]).open("a") if "log" in settings else None  # noqa: SIM115 (for the life of the process)
    app = create_app([toy_model("diagnosis", Toy(), PlainPredict())], store=store, limits=limits, log=log)
    tls = {name: Path(settings[name]) for name in ("certificate", "private_key") if name in settings}
    serve(app, port=settings.get("port", 0), ready=lambda url: print(url, flush=True), **tls)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
