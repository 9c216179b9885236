"""Every technique of the strategic table, built or not: what cannot be measured is said here, once.

A technique without a `Record` reads "not measured"; nothing in this file is a figure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Technique:
    """The parts of a table row that no measurement gives.

    Args:
        title: what people call it.
        state: what the model is while the technique runs ("in the clear at the server" ...).
        use_case: when it is the right choice.
        framework: what carries it here.
        needs: organisations and machines that must take part.
    """

    title: str
    state: str
    use_case: str
    framework: str
    needs: str


_EVERY_ROUND = "in the clear at the server after every round"
_AT_SERVER = "in the clear at the server, never at the client"

TRAINING: Mapping[str, Technique] = {
    "local": Technique(
        "Local only",
        "each party its own",
        "the fall-back every federation must beat",
        "confide (numpy)",
        "1 organisation, 1 machine",
    ),
    "pooled": Technique(
        "Pooled data",
        "in the clear at one place",
        "the ceiling, where the law allows pooling",
        "confide (numpy)",
        "all records at 1 organisation",
    ),
    "plain": Technique(
        "Federated, plain sum",
        _EVERY_ROUND,
        "a trusted coordinator; records must not move",
        "confide",
        "n organisations, n + 1 machines",
    ),
    "masked": Technique(
        "Federated, secure aggregation",
        _EVERY_ROUND,
        "nobody may see one party's update",
        "confide (X25519, AES-256 through OpenSSL)",
        "n organisations, n + 1 machines",
    ),
    "masked+dp": Technique(
        "Secure aggregation + differential privacy",
        _EVERY_ROUND + ", noisy",
        "the model itself will be published or served widely",
        "confide",
        "n organisations, n + 1 machines",
    ),
    "amortised": Technique(
        "Secure aggregation, amortised keys",
        _EVERY_ROUND,
        "many rounds over the same parties",
        "confide",
        "n organisations, n + 1 machines",
    ),
    "shares": Technique(
        "Two-server shares",
        _EVERY_ROUND,
        "many or weak clients, two independent operators",
        "confide",
        "n organisations, 2 servers of different owners",
    ),
    "groups": Technique(
        "Robust group sums", _EVERY_ROUND, "some parties may lie", "confide", "9 organisations or more, n + 1 machines"
    ),
    "he": Technique(
        "Homomorphic sum",
        _EVERY_ROUND,
        "one server, no interaction among parties",
        "confide (Microsoft SEAL)",
        "n organisations, a key holder, 1 server",
    ),
    "mpc": Technique(
        "Training on secret shares",
        "secret-shared until opened",
        "even the trained model stays hidden",
        "confide",
        "n organisations, 2 or 3 servers",
    ),
    "tee": Technique(
        "Enclave aggregation",
        "inside the enclave",
        "large models, a trusted chip vendor",
        "confide",
        "n organisations, 1 confidential machine",
    ),
}

INFERENCE: Mapping[str, Technique] = {
    "plain": Technique("Plain", _AT_SERVER, "the server may see the query", "confide (ASGI)", "1 server"),
    "he": Technique(
        "Homomorphic encryption, model protected",
        _AT_SERVER,
        "the server may not see the query, the client not the weights",
        "Microsoft SEAL",
        "1 server",
    ),
    "he-open": Technique(
        "Homomorphic encryption, open model",
        "readable by the client from one reply",
        "the model is public or the client's own",
        "Microsoft SEAL",
        "1 server",
    ),
    "paillier": Technique(
        "Partially homomorphic (Paillier)",
        _AT_SERVER,
        "linear models where lattices are not allowed",
        "pypaillier",
        "1 server",
    ),
    "mpc-dealer": Technique(
        "Two-party computation with a dealer",
        _AT_SERVER,
        "non-linear models at low latency",
        "confide",
        "1 server, 1 dealer of another owner",
    ),
    "mpc-outsourced": Technique(
        "Outsourced two-party computation",
        "secret-shared over two servers",
        "nobody may hold the model",
        "confide",
        "2 servers and 1 dealer of different owners",
    ),
    "mpc-3pc": Technique(
        "Three-party computation",
        "secret-shared over three servers",
        "nobody may hold the model, no dealer",
        "confide",
        "3 servers of different owners",
    ),
    "tee": Technique(
        "Attested enclave",
        "inside the enclave",
        "large models, a trusted chip vendor",
        "confide",
        "1 confidential machine",
    ),
}
