"""Secure aggregation by double masking: hardened SecAgg+ (docs/protocols/masked.md walks through it).

Each pair of clients agrees on a mask that one adds and the other subtracts, each client adds a mask of its own, and
the seeds of both are shared among all, so that the server can take away whatever a dropout leaves behind.

    paper            here                                       meaning
    n, t             clients, quorum                            shares dealt, shares that open a seed
    R                2^bits                                     the ring of the sum
    (c_u, s_u)       box_key, mask_key                          X25519 keys for boxes and masks, fresh in each session
    s_u^SK, b_u      mask_seed, self_seed                       the two secrets that are shared
    U1, U2, U3, U5   adverts, parcels, survivors, answers       who got as far as keys, shares, vector, unmasking

Paper: Bonawitz et al., CCS 2017, figure 4 without its consistency round; Bell et al., CCS 2020. Beyond them: seeds are
shared instead of keys, commitments to every seed and share give a lie a name, and a journal survives a crash.
"""

from __future__ import annotations

from confide.crypto.random import Randomness
from confide.errors import UsageError
from confide.guarantee import Adversary, Claim, Guarantee, Trust
from confide.ideal import Aggregator, Cohort, Session, Vector
from confide.secagg import masked_client, masked_server, roster
from confide.secagg.masked_terms import Terms
from confide.wire import Party, Store


class Masked(Aggregator):
    """The server learns the sum of at least `quorum` vectors; dropouts are survived at every stage.

    Below, t is `cohort.quorum`, n the number of clients, c how many of them pool what they see with the server.

    **Guarantees** Against a server that follows the protocol, together with any c <= t - 1 clients: nothing about the
    vectors of the others beyond their sum over the survivors (at least t - c of them). A client never reveals both
    shares of one peer, never sends two different vectors in one session, never answers a session twice, and refuses
    keys that are not signed by the pinned roster. A wrong share and a wrong seed are caught and their author is named.

    **Leaks** The sum; who dropped out, and when. A sum over few tells much: with c = t - 1 it may be one honest vector.
    A server that tells clients different survivors can open smaller sums (see the page): no claim holds against it.
    """

    name = "masked"
    guarantee = Guarantee(
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
        post_quantum=False,
        verified_result=False,
        leaks="The sum over the survivors, which can reveal records unless noise is added; who dropped out, and when.",
        primary="X25519 + Shamir + ChaCha20 masks",
        paper="Bonawitz et al., CCS 2017; Bell et al., CCS 2020",
    )

    def setup(self, role: str, me: str, cohort: Cohort, store: Store, rng: Randomness) -> Party:
        """Return the party that makes an identity and pins the roster; its output is the roster's fingerprint."""
        if role == "server":
            return roster.register(cohort, store)
        _check_client(role, me, cohort)
        return roster.enrol(me, cohort, store, rng)

    def party(
        self, role: str, me: str, session: Session, vector: Vector | None, store: Store, rng: Randomness
    ) -> Party:
        """Return the party of one sum: the server's output is `MaskedSums`, a client has none.

        Raises:
            UsageError: no set-up, a cohort that is not in the roster, a vector that does not fit the session.
        """
        terms = Terms(session, roster.pinned(store))
        if role == "server":
            return masked_server.Server(terms).play()
        _check_client(role, me, session.cohort)
        if vector is None:
            raise UsageError("Expected a vector at a client")
        saved = store.get(masked_client.journal_key(session.run))
        return masked_client.play(terms, me, session.checked(vector), roster.identity(store), saved, rng)


def _check_client(role: str, me: str, cohort: Cohort) -> None:
    if role != "client" or me not in cohort.clients:
        raise UsageError(f"Expected role={role}, me={me} to be the server or a client of the cohort")
