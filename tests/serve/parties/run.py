"""The command line with the stand-in backend in its registry: what the tests start as processes."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from confide import serve
from confide.cli import main

if __name__ == "__main__":
    serve.BACKENDS = {**serve.BACKENDS, "standin": "serve.parties.standin:Standin"}
    serve.JOINT = (*serve.JOINT, "standin")
    main()
