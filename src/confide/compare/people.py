"""What each technique asks of people: organisations, machines, ports, keys, and the commands from an empty machine.

Who takes part follows from the roles of the aggregator or backend, and who must not pool what they see from the claims
of its guarantee. The commands are those of docs/federation.md, docs/mpc.md and docs/serve.md; a line of code is a line
of those, of the job file or of a policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from confide.compare.cells import BASELINES, ON_SHARES, VARIANTS
from confide.errors import ConfideError
from confide.guarantee import Guarantee
from confide.serve import BACKENDS, JOINT, load_backend
from confide.train.parts import AGGREGATORS


class Asks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one technique asks.

    Args:
        task, choice: as in `Record`.
        roles: who takes part beside those who hold records or ask.
        organisations: how many at least, the ones with records or questions counted as `holders`.
        apart: groups of roles of which no two may pool what they see; such roles are of different organisations.
        machines: processes on machines of their own.
        open_ports: machines that others must be able to reach.
        keys: what somebody must keep safe, and who.
        steps: commands from an empty machine to a result, in order, over all machines.
        lines: that a user writes: commands, and the lines of job and policy.
        post_quantum: whether no known quantum algorithm breaks the claims.
        why_ports: the reason for the number of open ports.
    """

    task: str
    choice: str
    roles: tuple[str, ...]
    organisations: int
    apart: tuple[str, ...]
    machines: int
    open_ports: int
    keys: tuple[str, ...]
    steps: tuple[str, ...]
    lines: int
    post_quantum: bool
    why_ports: str


_INSTALL = "pip install 'confide[all]'"
_FOUND = "confide federation init federation --address HOST:PORT"
_JOINED = (
    "confide federation invite NAME --federation federation",
    "confide federation join NAME.invitation --into ID",
)

#: Lines of a job file that says what its defaults do not: the tables [data], [model] and [train] with their keys.
_JOB_LINES = 9
_PRIVACY_LINES = 4
_POLICY_LINES = 5


def asks(task: str, choice: str, guarantee: Guarantee, *, holders: int) -> Asks:
    """Return what a technique asks.

    Args:
        task: "training" or "inference".
        choice: out of `cells`.
        guarantee: of its record.
        holders: parties with records; 1 who asks, for predictions.
    """
    found = _training(choice, holders) if task == "training" else _inference(choice)
    roles, machines, ports, keys, steps, extra, why = found
    apart = _apart(guarantee)
    # roles of which no two may pool are of one organisation each; one server alone belongs to whoever has the model
    others = len([role for role in roles if role in apart]) if apart else min(1, len(roles))
    return Asks(
        task=task,
        choice=choice,
        roles=tuple(roles),
        organisations=holders + others,
        apart=apart,
        machines=machines,
        open_ports=ports,
        keys=keys,
        steps=steps,
        lines=len(steps) + extra,
        post_quantum=guarantee.post_quantum,
        why_ports=why,
    )


_Found = tuple[Sequence[str], int, int, tuple[str, ...], tuple[str, ...], int, str]


def _training(choice: str, holders: int) -> _Found:
    if choice in BASELINES:
        machines = holders if choice == "local" else 1
        steps = (_INSTALL, "confide train JOB.toml")
        return (), machines, 0, ("the key that signs the model",), steps, _JOB_LINES, "nobody is dialled"
    if choice == ON_SHARES:
        steps = (_INSTALL, _FOUND, *_JOINED * (holders + 2), *("confide train JOB.toml --identity ID",) * (holders + 3))
        keys = ("an identity at every member", "the federation's authority at the first server")
        lines = _JOB_LINES + 4  # [shares]: servers, dealer, address
        return ("server", "helper", "dealer"), holders + 3, 2, keys, steps, lines, "both servers are dialled"
    aggregate, _, private = choice.partition("+")
    roles = [role for role in AGGREGATORS[aggregate].roles if role != "client"]
    helpers = len(roles) - 1
    steps = (
        _INSTALL,
        _FOUND,
        *_JOINED * (holders + helpers),
        "confide coordinator JOB.toml --federation federation",
        *("confide node --identity ID --data TABLE.csv --policy POLICY.toml",) * holders,
        *("confide helper ID",) * helpers,
    )
    keys = ["an identity at every member", "the federation's authority and the signing key at the coordinator"]
    if "keyholder" in roles:
        keys.append("the key that opens sums, at the keyholder")
    lines = _JOB_LINES + (_PRIVACY_LINES if private else 0) + _POLICY_LINES * holders
    return roles, holders + len(roles), 1, tuple(keys), steps, lines, "members dial the coordinator, nobody dials them"


def _inference(choice: str) -> _Found:
    backend = VARIANTS.get(choice, choice)
    try:
        roles = [role for role in load_backend(backend).roles if role != "client"]
    except ConfideError:  # the package is not installed here; the roles are those of a client and a server
        roles = ["server"]
    serve = f"confide serve MODEL.confide --backend {backend}" + (" --open-model" if choice == "he-open" else "")
    if backend in JOINT:
        others = len(roles) - 1
        named = [role for role in roles if role != "server"]
        run_by = {"dealer": "confide dealer ID", "helper": "confide helper ID", "third": "confide helper ID"}
        options = "".join(f" --{role} NAME" for role in named)
        steps = (
            _INSTALL,
            _FOUND,
            *_JOINED * (others + 1),
            f"{serve} --federation federation{options}",
            *(run_by[role] for role in named),
            "confide predict wss://HOST:PORT TABLE.csv --identity ID",
        )
        keys = ("an identity at every member", "the federation's authority at the server")
        return roles, len(roles), len(roles), keys, steps, 0, "the client and the others dial each of these"
    secrets: Mapping[str, tuple[str, ...]] = {
        "he": ("secret keys at the client; `confide predict --keys` keeps them",),
        "paillier": ("a secret key at the client; `confide predict --keys` keeps it",),
        "tee": ("a policy that pins code and model, at the client", "the enclave's own key, made anew at each start"),
    }
    policy = " --policy POLICY.toml" if backend == "tee" else ""
    served = f"{serve} --attester gramine" if backend == "tee" else serve
    drafted = ("confide attest URL --write-policy POLICY.toml",) if backend == "tee" else ()
    steps = (_INSTALL, served, *drafted, f"confide predict URL TABLE.csv{policy}")
    return roles, 1, 1, secrets.get(backend, ("TLS keys at the server",)), steps, 0, "the client dials the server"


def _apart(guarantee: Guarantee) -> tuple[str, ...]:
    """Return the roles that must not pool, as the claims have it: who is kept from something if another is honest."""
    pooled = {claim.hidden_from for claim in guarantee.claims if claim.if_honest}
    honest = {one for claim in guarantee.claims for one in claim.if_honest}
    known = {"server", "helper", "third", "dealer", "keyholder"}
    return tuple(sorted((pooled | honest) & known)) if len((pooled | honest) & known) > 1 else ()


def choices() -> dict[str, tuple[str, ...]]:
    """Return every technique that `asks` knows, by task."""
    return {
        "training": (*BASELINES, *AGGREGATORS, "masked+dp", ON_SHARES),
        "inference": (*BACKENDS, *VARIANTS),
    }
