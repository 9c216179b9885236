"""What peers promise in the setting in which they are measured: our words, from their papers and their code."""

from __future__ import annotations

from confide.guarantee import SUM_REVEALS, Adversary, Claim, Guarantee, Trust, nothing_hidden

#: Federated averaging whose server adds updates in the clear.
PLAIN_SUM = nothing_hidden("The server sees every party's model after every round, and records can be read from that.")

_ENCRYPTED_QUERY = frozenset({Claim("query", "server"), Claim("prediction", "server")})
_NOT_FLOODED = (
    "Replies are neither re-randomised nor flooded, so the client may learn weights from them, and no claim is made "
    "for the model."
)

TENSEAL = Guarantee(
    claims=_ENCRYPTED_QUERY,
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks=f"The server learns how many rows are asked. {_NOT_FLOODED} Whoever publishes decrypted CKKS numbers gives "
    "away parts of the key.",
    primary="CKKS (RLWE), SEAL 4.x inside TenSEAL, parameters of the standard at 128 bits",
    paper="arXiv 2104.03152; ePrint 2016/421",
)

ORION = Guarantee(
    claims=_ENCRYPTED_QUERY,
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks=f"Client and server are one process in this release, so the claim is of the scheme alone. {_NOT_FLOODED}",
    primary="CKKS (RLWE, conjugate-invariant ring) in Lattigo, dense secrets",
    paper="arXiv 2311.03470",
)

CONCRETE = Guarantee(
    claims=_ENCRYPTED_QUERY,
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks="The server learns how many rows are asked. A result is wrong with a small probability, which its compiler "
    "states. No claim is made for the model: the client holds quantisers, and replies are not re-randomised.",
    primary="TFHE (LWE) by Concrete, programmable bootstrapping where a model needs it",
    paper="ePrint 2018/421; ePrint 2021/091",
)

_PARTIES = ("server", "helper", "second helper")

SPU_ABY3 = Guarantee(
    claims=frozenset(
        Claim(asset, one, tuple(other for other in _PARTIES if other != one))
        for asset in ("query", "prediction", "weights")
        for one in _PARTIES
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.NON_COLLUSION,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks="Any two of the three parties together read everything. As measured, the first party gives the query and "
    "gets the result, and links are not encrypted.",
    primary="replicated secret sharing mod 2^64 (ABY3)",
    paper="ePrint 2018/403; SecretFlow-SPU, USENIX ATC 2023",
)

SPU_SEMI2K = Guarantee(
    claims=frozenset({Claim("query", "second party", ("first party",)), Claim("prediction", "second party")}),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.OPERATOR,
    security_bits=128,
    post_quantum=True,
    verified_result=False,
    leaks="INSECURE as measured: the first party, which asks, deals the correlations as well and could read the "
    "weights. A dealer of another owner would mend that. Links are not encrypted.",
    primary="additive secret sharing mod 2^64 with dealt triples (SPDZ2k, semi-honest)",
    paper="ePrint 2018/482; SecretFlow-SPU, USENIX ATC 2023",
)

SPU_CHEETAH = Guarantee(
    claims=frozenset({Claim("query", "server"), Claim("prediction", "server"), Claim("weights", "client")}),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.CRYPTOGRAPHY,
    security_bits=128,
    post_quantum=False,
    verified_result=False,
    leaks="Both are taken to follow the protocol. As measured, links are not encrypted.",
    primary="additive shares mod 2^64, RLWE for products, silent oblivious transfer for comparisons (Cheetah)",
    paper="ePrint 2022/207; SecretFlow-SPU, USENIX ATC 2023",
)

FLOWER_SECAGG = Guarantee(
    claims=frozenset(
        {Claim("update", "server", ("a threshold of clients",)), Claim("update", "other clients", ("server",))}
    ),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.NON_COLLUSION,
    security_bits=128,
    post_quantum=False,
    verified_result=False,
    leaks=f"{SUM_REVEALS} Clients' keys are not signed: a server that leaves the protocol stands between them.",
    primary="SecAgg+: pairwise masks from elliptic-curve keys, Shamir's shares of seeds",
    paper="ePrint 2017/281; ePrint 2020/704",
)

#: Without claims against the curator: it sees all records.
_CURATOR = "The curator holds every record of every party in the clear."

OPACUS = Guarantee(
    claims=frozenset({Claim("record", "outsiders", ("curator",))}),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.OPERATOR,
    security_bits=None,
    post_quantum=True,
    verified_result=False,
    leaks=f"Each record at most epsilon={{epsilon:g}} at delta={{delta:.2g}} to who gets the model. {_CURATOR} Noise "
    "is floating point, from a generator that is not cryptographic.",
    primary="DP-SGD: clipped gradients of records, Gaussian noise",
    paper="arXiv 1607.00133; arXiv 2109.12298",
)

DIFFPRIVLIB = Guarantee(
    claims=frozenset({Claim("record", "outsiders", ("curator",))}),
    adversary=Adversary.SEMI_HONEST,
    trust=Trust.OPERATOR,
    security_bits=None,
    post_quantum=True,
    verified_result=False,
    leaks=f"Each record at most epsilon={{epsilon:g}} at delta=0 to who gets the model. {_CURATOR} Its proof takes the "
    "minimum to be exact, which a solver is not.",
    primary="objective perturbation: noise in the loss",
    paper="JMLR 12 (2011) 1069; arXiv 1907.02444",
)
