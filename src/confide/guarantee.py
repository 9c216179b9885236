"""What is promised: claims, guarantees, and the privacy label that a saved model carries.

A `Guarantee` stands beside every figure that confide prints. `compare.advise` filters on its claims, so a claim is
data, not prose: which asset is hidden from which role, as long as which others are honest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Literal

import msgspec

from confide.errors import UsageError

#: What `seed` says when the noise came from the operating system; anything else voids the claims.
NOISE_FROM_SYSTEM = "operating system"

#: The rate of false alarms at which the label states how often an attacker is right.
FALSE_POSITIVE_RATE = 0.01

#: What every sum without noise leaks, and what every technique does whose secrets rest on X25519 alone.
SUM_REVEALS = (
    "The sum can reveal records unless noise is added, the more so when the server crafts models or varies the cohort."
)
RECORDED_X25519 = "X25519 keys: messages recorded today fall to a quantum computer."
RECORDED_CLOSED = (
    "Messages recorded today stay closed to a quantum computer; identities are Ed25519, so one that exists at set-up "
    "could take a client's place."
)


class Adversary(StrEnum):
    """How far the adversary may go before the claims stop to hold."""

    NONE = "none"  # nothing is hidden: the plain technique
    SEMI_HONEST = "semi-honest"  # follows the protocol, keeps and studies everything it sees
    MALICIOUS = "malicious"  # sends whatever it likes


class Trust(StrEnum):
    """What the claims rest on, from the strongest ground to the weakest."""

    CRYPTOGRAPHY = "cryptography"  # a hardness assumption and the honesty named in the claims
    NON_COLLUSION = "non-collusion"  # named parties do not pool what they see
    HARDWARE = "hardware"  # a vendor's chip, its firmware and its supply chain
    OPERATOR = "operator"  # whoever runs the server
    NOBODY = "nobody"  # nothing is claimed to be hidden, or the claim holds unconditionally


@dataclass(frozen=True, slots=True)
class Claim:
    """`asset` stays hidden from `hidden_from`, as long as everyone in `if_honest` is honest.

    Args:
        asset: what is hidden: "query", "prediction", "weights", "update", "record" ...
        hidden_from: the role that does not learn it: "server", "client", "other clients", "outsiders" ...
        if_honest: roles or vendors that must be honest beyond the holder of the asset; may be empty.
    """

    asset: str
    hidden_from: str
    if_honest: tuple[str, ...] = ()

    def __str__(self) -> str:
        condition = f" if honest: {', '.join(self.if_honest)}" if self.if_honest else ""
        return f"{self.asset} hidden from {self.hidden_from}{condition}"


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What one technique promises and what it does not.

    Args:
        claims: what is hidden from whom; empty for a plain technique.
        adversary: the strongest adversary against which the claims hold.
        trust: what the claims rest on.
        security_bits: computational security of the weakest part in bits; None where no cryptography hides anything.
        post_quantum: True if no known quantum algorithm breaks the claims.
        verified_result: True if the receiver can check that the output is the ideal function's.
        leaks: one or two sentences: everything that still leaks, the output included.
        primary: the cryptography that carries it, in a few words ("BFV, N=4096", "X25519 + AES-256 masks").
        paper: the source of the protocol and of its proof.
    """

    claims: frozenset[Claim]
    adversary: Adversary
    trust: Trust
    security_bits: int | None
    post_quantum: bool
    verified_result: bool
    leaks: str
    primary: str
    paper: str

    def hides(self, asset: str, hidden_from: str) -> bool:
        """Return True if some claim hides `asset` from `hidden_from`."""
        return any(claim.asset == asset and claim.hidden_from == hidden_from for claim in self.claims)

    def sentences(self) -> list[str]:
        """Return the claims as sorted, printable sentences; one sentence saying so if nothing is hidden."""
        return sorted(str(claim) for claim in self.claims) or ["nothing is hidden"]

    def summary(self) -> str:
        """Return in one line against whom it holds, how strongly, and who must not pool what they see."""
        if not self.claims:
            return "nothing is hidden"
        checked = "results are verified" if self.verified_result else "results are not verified"
        follows = "semi-honest: all follow the protocol, " if self.adversary is Adversary.SEMI_HONEST else "malicious: "
        parts = [follows + checked]
        if self.security_bits is not None:
            parts.append(f"at least {self.security_bits}-bit security")
        if pairs := {frozenset((claim.hidden_from, one)) for claim in self.claims for one in claim.if_honest}:
            parts.append(_private(pairs))
        return "; ".join(parts)

    def lines(self) -> list[str]:
        """Return it as lines: the summary, who does not learn what unless it pools with whom, and the leaks."""
        learns: dict[tuple[str, tuple[str, ...]], list[str]] = {}
        for claim in self.claims:
            learns.setdefault((claim.hidden_from, claim.if_honest), []).append(claim.asset)
        lines = [
            f"{who} does not learn: {', '.join(sorted(assets))}"
            + (f" (unless it pools with {_or(apart)})" if apart else "")
            for (who, apart), assets in learns.items()
        ]
        return [self.summary(), *sorted(lines), f"leaks: {self.leaks}"]


def _private(pairs: set[frozenset[str]]) -> str:
    """Return in words that what is hidden stays so unless one of `pairs` pools.

    Example:
        >>> _private({frozenset("ab"), frozenset("ac"), frozenset("db"), frozenset("dc")})
        'private unless a or d pools what it sees with b or c'
    """
    everybody = sorted(frozenset[str]().union(*pairs))
    if len(everybody) > 2 and len(pairs) == len(everybody) * (len(everybody) - 1) // 2:
        return f"private while no two of {', '.join(everybody[:-1])} and {everybody[-1]} pool what they see"
    left, whom = set(pairs), dict[tuple[str, ...], list[str]]()
    while left:  # whoever is in most pairs takes them, so that a name that many share is said once
        most = max(everybody, key=lambda one: sum(one in pair for pair in left))
        mine = {pair for pair in left if most in pair}
        whom.setdefault(tuple(sorted(frozenset[str]().union(*mine) - {most})), []).append(most)
        left -= mine
    return "private unless " + ", or ".join(
        f"{_or(tuple(who))} pools what it sees with {_or(others)}" for others, who in whom.items()
    )


def _or(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


#: The aggregator in the label of a model that was made elsewhere.
IMPORTED = "imported"


class UtilityLost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What privacy cost in quality. The type admits no figure from private records that was not paid for.

    Args:
        points: the model without privacy minus this one, in points of `figure`.
        figure: what was measured ("accuracy in %, 20 splits").
        measured_on: "public data", or "charged release" if its epsilon is part of the label's.
    """

    points: float
    figure: str
    measured_on: Literal["public data", "charged release"]


def worst_true_positive_rate(mu: float, false_positive_rate: float) -> float:
    """Return the largest true-positive rate that any membership test has against a mu-GDP mechanism.

    Args:
        mu: parameter of Gaussian differential privacy, >= 0.
        false_positive_rate: of the test, 0 <= rate <= 1.

    Paper: Dong, Roth, Su (arXiv 1905.02383), the trade-off function G_mu: Phi(Phi^-1(rate) + mu).

    Example:
        >>> round(worst_true_positive_rate(0.268, 0.01), 4)  # epsilon = 1 at delta = 1e-5
        0.0198
    """
    if not (mu >= 0 and 0 <= false_positive_rate <= 1):
        raise UsageError(f"Expected mu={mu} of at least 0 and false_positive_rate={false_positive_rate} from 0 to 1")
    if false_positive_rate in (0.0, 1.0):
        return false_positive_rate
    normal = NormalDist()
    return normal.cdf(normal.inv_cdf(false_positive_rate) + mu)


class PrivacyLabel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model's training promised, carried inside its file and shown wherever the model is served.

    Fields that do not apply are None; a model trained without differential privacy has `epsilon` None and says so.

    Args:
        aggregator: the registry name of what summed the updates ("pooled" and "local" when nothing did).
        parties: who held records, by name.
        quorum: smallest number of parties in any released sum.
        colluding: largest number of parties that may pool with the server before the claims stop to hold.
        rounds: releases of an aggregate.
        unit: whose presence is hidden: "record", or the column that groups records.
        relation: the neighbouring relation ("add or remove one").
        epsilon, delta: the guarantee against the server together with `colluding` parties.
        epsilon_outsiders: the guarantee against whoever sees only the released model; not larger than `epsilon`.
        epsilon_party: the guarantee against one party by itself, which knows its own share of the noise.
        mu: the Gaussian-DP parameter against the same as `epsilon`, when the mechanism is Gaussian.
        mechanism: name and constants of the mechanism, printable.
        clip_norm: largest L2 norm of one record's contribution.
        noise_multiplier: noise standard deviation of one release over its L2 sensitivity.
        sampling: how records were drawn for a release, as implemented, and what is claimed for it.
        noise: law and precision of the noise; `seed` says where its random bytes came from.
        accountant: what computed epsilon, with its version.
        server_sees, parties_see, outsiders_see: everything that each of them learns.
        released: what left the training: "every round's model" or "the final model".
        metrics: figures about the model that were computed from records, and whether epsilon covers them.
        preprocessing: where scaling and bounds came from ("public bounds of the schema").
        preprocessing_epsilon: what that would cost alone, at the same delta; part of `epsilon`, not beside it.
        tuning: how the hyper-parameters were chosen and what that cost.
        public_data: what was used beside the parties' records, such as a pretrained encoder.
        utility_lost: what privacy cost; None if nobody measured it in a way that may be told.
        seed: "operating system", or the sentence that voids every claim.
        ledger: hex SHA-256 of the ledger's last line; empty if none was kept.
        hidden_among: fewest parties in any sum that the server saw; None if it saw single vectors, or was not told.
    """

    aggregator: str
    parties: tuple[str, ...]
    quorum: int
    colluding: int
    rounds: int
    unit: str | None = None
    relation: str | None = None
    epsilon: float | None = None
    delta: float | None = None
    epsilon_outsiders: float | None = None
    epsilon_party: float | None = None
    mu: float | None = None
    mechanism: str | None = None
    clip_norm: float | None = None
    noise_multiplier: float | None = None
    sampling: str | None = None
    noise: str | None = None
    accountant: str | None = None
    server_sees: str | None = None
    parties_see: str | None = None
    outsiders_see: str | None = None
    released: str = "every round's model"
    metrics: str | None = None
    preprocessing: str = "public bounds of the schema"
    preprocessing_epsilon: float | None = None
    tuning: str = "taken as fixed in advance; a search over private records would cost more"
    public_data: str | None = None
    utility_lost: UtilityLost | None = None
    seed: str = NOISE_FROM_SYSTEM
    ledger: str = ""
    hidden_among: int | None = None

    @property
    def voided(self) -> bool:
        """Return whether a claim is made and does not hold: the noise was not secret."""
        return self.epsilon is not None and self.seed != NOISE_FROM_SYSTEM

    def worst_true_positive_rate(self, false_positive_rate: float = FALSE_POSITIVE_RATE) -> float | None:
        """Return how often the best attacker recognises a record of the training; None without `mu`.

        The attacker sees all that `epsilon` covers, knows every other record, and raises a false alarm about a record
        that took no part at `false_positive_rate`, 0 < it < 1.

        Source: Phi(Phi^-1(a) + mu), the trade-off of a Gaussian mechanism (Dong, Roth, Su, arXiv 1905.02383, eq. 6).
        """
        return None if self.mu is None else worst_true_positive_rate(self.mu, false_positive_rate)

    @property
    def advantage(self) -> float | None:
        """Return the best attacker's true minus false positive rate, 2 Phi(mu / 2) - 1; 0 is guessing, 1 is certain."""
        return None if self.mu is None else 2 * NormalDist().cdf(self.mu / 2) - 1

    def sentence(self) -> str:
        """Return the label in one line, for a terminal, a page or a response header."""
        if self.aggregator == IMPORTED:
            return "made elsewhere and imported; nothing is claimed for its training, no differential privacy"
        groups = self.hidden_among is not None and self.hidden_among < self.quorum
        among = f" in sums over {self.hidden_among} or more of them" if groups else ""
        alone = len(self.parties) == 1
        trained = "trained by one party" if alone else f"trained by {self.aggregator} over {len(self.parties)} parties"
        if self.epsilon is None:
            return f"{trained}{among}, no differential privacy"
        colluding = "1 colluding party" if self.colluding == 1 else f"{self.colluding} colluding parties"
        return (
            f"{trained}{among}, epsilon={self.epsilon:.3g} at delta={self.delta:.3g} per {self.unit} "
            f"({self.relation}) against the server with {colluding}, noise from: {self.seed}"
        )


def imported_label() -> PrivacyLabel:
    """Return the label of a model that was made elsewhere: it claims nothing, and says that nothing is known."""
    unknown = "not known: the model was made elsewhere"
    return PrivacyLabel(
        aggregator=IMPORTED,
        parties=(),
        quorum=0,
        colluding=0,
        rounds=0,
        server_sees=unknown,
        parties_see=unknown,
        outsiders_see=unknown,
        released=unknown,
        metrics=unknown,
        tuning=unknown,
        public_data=unknown,
    )


def nothing_hidden(leaks: str) -> Guarantee:
    """Return the guarantee of a plain technique: no claim, and `leaks` says who sees what."""
    return Guarantee(
        claims=frozenset(),
        adversary=Adversary.NONE,
        trust=Trust.OPERATOR,
        security_bits=None,
        post_quantum=False,
        verified_result=False,
        leaks=leaks,
        primary="none",
        paper="",
    )
