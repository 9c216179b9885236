"""The paths of the service, in the words of the Open Inference Protocol v2; the table is in `server`."""

from __future__ import annotations


def route(path: str) -> tuple[str, str, str, str]:
    """Return the endpoint's name, the model, its version and the last argument; "" where there is none."""
    match path.strip("/").split("/"):
        case ["v2"]:
            return "server", "", "", ""
        case ["v2", "health", ("live" | "ready") as which]:
            return which, "", "", ""
        case ["metrics"]:
            return "metrics", "", "", ""
        case ["v2", "models", name, *rest]:
            version = ""
            if len(rest) > 1 and rest[0] == "versions":
                version, rest = rest[1], rest[2:]
            endpoint, argument = _endpoint(rest)
            return endpoint, name, version, argument
        case _:
            return "", "", "", ""


def _endpoint(rest: list[str]) -> tuple[str, str]:
    match rest:
        case []:
            return "model", ""
        case ["ready"]:
            return "model_ready", ""
        case [("infer" | "kit" | "keys") as which]:
            return which, ""
        case ["keys", key_id]:
            return "key", key_id
        case _:
            return "", ""
