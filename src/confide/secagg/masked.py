"""Secure aggregation by double masking: hardened SecAgg+ (docs/protocols/masked.md walks through it).

Each pair of clients agrees on a mask that one adds and the other subtracts, each client adds a mask of its own, and
the seeds of both are shared among all, so that the server can take away whatever a dropout leaves behind.

    paper            here                                       meaning
    n, k, t          clients, degree, threshold                 neighbours of a client, shares that open a seed
    R                2^bits                                     the ring of the sum
    (c_u, s_u)       box_key, mask_key                          X25519 keys for boxes and masks, fresh in each session
    s_u^SK, b_u      mask_seed, self_seed                       the two secrets that are shared
    U1, U2, U3       adverts, parcels, survivors                who got as far as keys, shares, vector
    U4, U5           confirmed, answers                         ... as the signed view, the shares to open

Paper: Bonawitz et al., CCS 2017, figure 4; Bell et al., CCS 2020. Beyond them: the consistency round is over all
clients and signs U2 too, the survivors check that their graph holds together, seeds are shared instead of keys,
commitments to every seed and share name a liar, a journal survives a crash.
"""

from __future__ import annotations

from confide.cohort import roster
from confide.cohort.collect import SMALLEST_SUM
from confide.crypto.random import Randomness
from confide.errors import UsageError
from confide.guarantee import RECORDED_X25519, SUM_REVEALS, Adversary, Claim, Guarantee, Trust
from confide.ideal import Aggregator, Cohort, Session, Vector
from confide.secagg import masked_client, masked_server
from confide.secagg.masked_terms import VECTOR, Terms
from confide.secagg.neighbours import Neighbours, degree_for
from confide.wire import Party, Store


def _guarantee(colluding: int, *, unsafe_quorum: bool) -> Guarantee:
    most = "quorum - 1" if unsafe_quorum else "2 * quorum - clients - 1"
    honest = (f"all clients but {most}; in a sparse graph all but colluding={colluding}",)
    return Guarantee(
        claims=frozenset(
            (
                Claim("update", "server", honest),
                Claim("update", "other clients", ("server",)),
                Claim("update", "outsiders"),
            )
        ),
        adversary=Adversary.SEMI_HONEST if unsafe_quorum else Adversary.MALICIOUS,
        trust=Trust.CRYPTOGRAPHY,
        security_bits=128,
        post_quantum=False,
        verified_result=False,
        leaks=f"{SUM_REVEALS} Two sums of the same updates over different survivors, as a repeated round can give, "
        f"reveal what lies between them. Who dropped out, and when. {RECORDED_X25519}",
        primary="X25519 + Shamir + AES-256 masks, Ed25519 consistency round",
        paper="Bonawitz et al., CCS 2017; Bell et al., CCS 2020",
    )


class Masked(Aggregator):
    """The server learns the sum of at least `quorum` vectors; dropouts are survived at every stage.

    Below, t is `cohort.quorum`, n the number of clients, c how many of them pool what they see with the server.

    Args:
        colluding: the c to withstand; clients refuse a quorum that is not above (n + c) / 2.
        neighbours: k, with how many clients each shares masks and seeds; None takes all up to 60 clients and about
            2 log2(n) + 15 above. In a sparse graph k / 2 + 1 shares open a seed, and c must be below that.
        unsafe_quorum: accept any quorum. Then claims hold against a server that follows the protocol, with c <= t - 1
            clients, in a sparse graph with c <= `colluding`.

    **Guarantees** Against a server that does whatever it likes, together with any c < 2t - n clients: nothing about the
    vectors of the others beyond one sum in each session, over all of them that are among at least t survivors. In a
    sparse graph the same for any c <= `colluding`, wherever they sit: clients refuse survivors whose graph c of them
    could take apart, and neighbours that masked with others than they. A
    client that runs as one process on its store, and not from a restored copy of it, never reveals both shares of one
    peer, never sends two different vectors or signs two views in one session, never answers a session twice, reveals
    shares only when t clients signed the very lists that it was told, and refuses keys that are not signed by
    the pinned roster. A wrong share and a wrong seed are caught and their author is named.

    **Leaks** The sum; who dropped out, and when. A sum over few tells much: at least t - c addends are not the
    colluders'. The server chooses who counts as a survivor and can always make a sum fail or come out wrong.
    """

    name = "masked"
    upload = VECTOR
    guarantee = _guarantee(0, unsafe_quorum=False)

    def __init__(self, *, colluding: int = 0, neighbours: int | None = None, unsafe_quorum: bool = False) -> None:
        if colluding < 0:
            raise UsageError(f"Expected colluding={colluding} to be 0 or more")
        if neighbours is not None and neighbours < SMALLEST_SUM - 1:
            raise UsageError(f"Expected neighbours={neighbours} to be at least {SMALLEST_SUM - 1}, or None for enough")
        self._colluding, self._degree, self._unsafe_quorum = colluding, neighbours, unsafe_quorum
        self._graphs: dict[bytes, Neighbours] = {}  # public: parties of one process draw it once
        self.guarantee = _guarantee(colluding, unsafe_quorum=unsafe_quorum)

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
            UsageError: no set-up, a cohort that is not in the roster, a quorum that is too small, a vector that does
                not fit the session.
        """
        self.check(session.cohort)
        terms = self._terms(session, store)
        if role == "server":
            return masked_server.Server(terms).play()
        _check_client(role, me, session.cohort)
        if vector is None:
            raise UsageError("Expected a vector at a client")
        return masked_client.play(terms, me, session.checked(vector), roster.identity(store), store, rng)

    def _terms(self, session: Session, store: Store) -> Terms:
        clients = len(session.cohort.clients)
        degree = degree_for(clients) if self._degree is None else min(self._degree, clients - 1)
        listed = roster.pinned(store)
        terms = Terms(session, listed, degree=degree, colluding=self._colluding, graphs=self._graphs)
        if terms.threshold <= self._colluding and not (self._unsafe_quorum and terms.graph.complete):
            raise UsageError(
                f"Expected colluding={self._colluding} to be below the {terms.threshold} shares that open a seed among "
                f"neighbours={degree}; take at least {2 * self._colluding} neighbours"
            )
        return terms

    def check(self, cohort: Cohort) -> None:
        """Refuse a quorum whose sums may be too small, or that two sets of survivors can both reach."""
        n, t, c = len(cohort.clients), cohort.quorum, self._colluding
        needed = max(SMALLEST_SUM, (n + c) // 2 + 1)
        if t < needed and not self._unsafe_quorum:
            raise UsageError(
                f"Expected quorum={t} of clients={n} with colluding={c} to be at least {needed}: more than half of "
                f"clients + colluding, and not below {SMALLEST_SUM}, since a sum of two shows each the other's vector; "
                + ("raise the quorum" if needed <= n else "take more clients, or fewer colluding")
            )


def _check_client(role: str, me: str, cohort: Cohort) -> None:
    if role != "client" or me not in cohort.clients:
        raise UsageError(f"Expected role={role}, me={me} to be the server or a client of the cohort")
