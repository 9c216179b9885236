"""Secure aggregation with keys that last a run (docs/protocols/amortised.md walks through it).

Clients agree on pairwise secrets at set-up. The masks of a round are derived from them and from the round's context, so
no mask is ever used twice and a round is one upload and one answer; a dropout costs one more exchange.

    symbol   here                                  meaning
    n, t     clients, quorum                       shares of a self seed, shares that open it
    s_u      amortised_keys.Secret                 static X25519 keys, one per epoch of R rounds
    l_uv     amortised_chains                      links of ML-KEM-768 chains, one per pair and epoch
    k_uv     AmortisedTerms.pair_key               the key of a pair's mask in one session
    b_u      self_seed                             the seed of a client's own mask, fresh in each session

Paper: the set-up once and the per-round keys are those of Ma et al., Flamingo, IEEE S&P 2023; self masks those of
Bonawitz et al., CCS 2017. Here the surviving partners themselves tell the pair keys of whoever is lost, and pairs share
an ML-KEM secret (FIPS 203) besides the X25519 one.
"""

from __future__ import annotations

from collections.abc import Mapping

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM
from confide.crypto.keys import require_encapsulation
from confide.crypto.random import Randomness
from confide.errors import UsageError
from confide.guarantee import RECORDED_CLOSED, RECORDED_X25519, SUM_REVEALS, Adversary, Claim, Guarantee, Trust
from confide.ideal import Aggregator, Cohort, Session, Vector
from confide.secagg import amortised_client, amortised_keys
from confide.secagg.amortised_keys import Secret
from confide.secagg.amortised_server import Server
from confide.secagg.amortised_terms import VECTOR, AmortisedTerms
from confide.wire import Party, Store, encode

#: After how many rounds the static keys are replaced and erased, unless said otherwise.
ROUNDS_PER_EPOCH = 32

_LEAKS = (
    f"{SUM_REVEALS} Who dropped out, and when. Keys last an epoch: a stolen store opens its client's rounds of that "
    "epoch and later ones to the server, none before it."
)


def _guarantee(*, hybrid: bool) -> Guarantee:
    return Guarantee(
        claims=frozenset(
            (
                Claim("update", "server", ("all clients but quorum - 1",)),
                Claim("update", "other clients", ("server",)),
                Claim("update", "outsiders"),
            )
        ),
        adversary=Adversary.SEMI_HONEST,
        trust=Trust.CRYPTOGRAPHY,
        security_bits=128,
        post_quantum=hybrid,
        verified_result=False,
        leaks=f"{_LEAKS} {RECORDED_CLOSED if hybrid else RECORDED_X25519}",
        primary=f"{'X25519 and ML-KEM-768' if hybrid else 'X25519 once per epoch'} + Shamir + AES-256 masks",
        paper="Ma et al., IEEE S&P 2023; Bonawitz et al., CCS 2017",
    )


class Amortised(Aggregator):
    """The server learns the sum of at least `quorum` vectors, for a third of the work of `Masked` per round.

    Below, t is `cohort.quorum`, n the number of clients, c how many of them pool what they see with the server.

    Args:
        rounds_per_epoch: R, after how many rounds the static keys are replaced and erased, >= 1.
        epochs: how many of them set-up prepares, >= 1; rounds are counted from 0 and end before their product.
        hybrid: pairs share an ML-KEM-768 secret too, so that what is recorded today stays closed to a quantum computer;
            False for an OpenSSL without ML-KEM. The same at every party: a set-up of both kinds is refused.
        unsafe_quorum: accept sums of one or two vectors, which show what they should hide.

    **Guarantees** Against a server that follows the protocol, together with any c <= t - 1 clients: nothing about the
    vectors of the others beyond their sum over the survivors (at least t - c of them). A client never reveals both a
    share of a peer's self seed and the pair key with it, never sends two different vectors in one session, and refuses
    keys that are not signed by the pinned roster. Whoever seizes a client's store learns nothing about the epochs
    before the newest; about that epoch and all later ones, with recorded traffic and the server's help, everything.
    With `hybrid`, whoever breaks X25519 but not ML-KEM, or ML-KEM but not X25519, learns no pair secret from recorded
    traffic. Identities are Ed25519: who can forge them during set-up can take a client's place.

    **Leaks** The sum; who dropped out, and when. A sum over few tells much: with c = t - 1 it may be one honest vector.
    """

    name = "amortised"
    upload = VECTOR
    guarantee = _guarantee(hybrid=True)

    def __init__(
        self,
        *,
        rounds_per_epoch: int = ROUNDS_PER_EPOCH,
        epochs: int = 64,
        hybrid: bool = True,
        unsafe_quorum: bool = False,
    ) -> None:
        if rounds_per_epoch < 1 or epochs < 1:
            raise UsageError(f"Expected rounds_per_epoch={rounds_per_epoch} and epochs={epochs} to be at least 1")
        self._rounds_per_epoch, self._epochs = rounds_per_epoch, epochs
        self._hybrid, self._unsafe_quorum = hybrid, unsafe_quorum
        self.guarantee = _guarantee(hybrid=hybrid)
        # What a client shares with the others in the newest epoch, by client; in memory only.
        self._agreed: dict[str, tuple[Secret, dict[str, bytes]]] = {}

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that pins the roster and publishes the keys; its output is the roster's fingerprint.

        Raises:
            UsageError: `hybrid`, and an OpenSSL without ML-KEM; or `me` is not in the cohort.
        """
        if self._hybrid:
            require_encapsulation()
        if role == "server":
            return amortised_keys.register(cohort, store, self._epochs, hybrid=self._hybrid)
        _check_client(role, me, cohort)
        return amortised_keys.enrol(me, cohort, store, rng, self._epochs, hybrid=self._hybrid)

    def check(self, cohort: Cohort) -> None:
        """Refuse sums of one or two vectors."""
        if cohort.quorum < SMALLEST_SUM and not self._unsafe_quorum:
            raise UsageError(
                f"Expected quorum={cohort.quorum} to be at least {SMALLEST_SUM}, since a sum of two shows each "
                "the other's vector; "
                + ("raise the quorum" if len(cohort.clients) >= SMALLEST_SUM else "take more clients")
            )

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum: the server's output is `MaskedSums`, a client has none.

        Raises:
            UsageError: a quorum below 3, no set-up or one with another `hybrid`, a cohort that is not in the roster, a
                round after the last epoch, a vector that does not fit the session.
        """
        self.check(session.cohort)
        epoch = session.round // self._rounds_per_epoch
        if not 0 <= epoch < self._epochs:
            raise UsageError(
                f"Expected round={session.round} within epochs={self._epochs} of {self._rounds_per_epoch} rounds; "
                "prepare more epochs, or run setup again and count from 0"
            )
        if role == "server":
            book = amortised_keys.book(store)
            self._check_set_up(hybrid=book.hybrid)
            return Server(AmortisedTerms(session, roster.pinned(store), book.digest, epoch)).play()
        _check_client(role, me, session.cohort)
        if vector is None:
            raise UsageError("Expected a vector at a client")
        secret = amortised_keys.secret(store)
        self._check_set_up(hybrid=secret.links is not None)
        terms = AmortisedTerms(session, roster.pinned(store), secret.context, epoch)
        return self._client(terms, me, session.checked(vector), secret, store, rng)

    def _client(
        self, terms: AmortisedTerms, me: str, vector: Vector, secret: Secret, store: Store, rng: Randomness
    ) -> Party:
        entry = amortised_client.resumed(terms, store.get(amortised_client.journal_key(terms.session.run)))
        secret = secret.at(terms.epoch)
        shared = self._pair_secrets(me, secret, store)
        moved = {amortised_keys.SECRET: encode(secret)}
        return (yield from amortised_client.play(terms, me, vector, shared, entry, moved, rng))

    def _check_set_up(self, *, hybrid: bool) -> None:
        if hybrid != self._hybrid:
            raise UsageError(f"Expected hybrid={self._hybrid} to be what set-up had; run setup again, or take {hybrid}")

    def _pair_secrets(self, me: str, secret: Secret, store: Store) -> Mapping[str, bytes]:
        """Return what `me` shares with each other client in the epoch, agreed on once."""
        if me not in self._agreed or self._agreed[me][0] != secret:
            self._agreed[me] = secret, amortised_keys.pair_secrets(secret, amortised_keys.book(store), me)
        return self._agreed[me][1]


def _check_client(role: str, me: str, cohort: Cohort) -> None:
    if role != "client" or me not in cohort.clients:
        raise UsageError(f"Expected role={role}, me={me} to be the server or a client of the cohort")
