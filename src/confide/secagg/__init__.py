"""Secure aggregation: the server learns a sum of vectors and not the addends.

>>> import numpy as np
>>> from confide.crypto.random import SystemRandomness
>>> from confide.ideal import Cohort, Session
>>> from confide.secagg import Masked
>>> from confide.wire import MemoryStore, lose, run
>>> cohort = Cohort(("north", "east", "south", "west"), quorum=3)
>>> roles = {"server": "server"} | dict.fromkeys(cohort.clients, "client")
>>> stores, rng, masked = {name: MemoryStore() for name in roles}, SystemRandomness(), Masked()
>>> parties = {me: masked.setup(role, me, cohort, stores[me], rng) for me, role in roles.items()}
>>> len(set(run(parties, stores=stores).outputs.values()))  # everybody sees the same fingerprint of the roster
1
>>> session = Session("demo", round=1, cohort=cohort, length=2, bound=100)
>>> vectors = {"north": np.array([1, -2]), "east": np.array([10, 20]), "south": np.array([100, 0])}
>>> vectors["west"] = np.array([0, 7])
>>> parties = {me: masked.party(role, me, session, vectors.get(me), stores[me], rng) for me, role in roles.items()}
>>> done = run(parties, stores=stores, fault=lose("south", tag="masked/vector"))
>>> done.output("server").values.tolist(), sorted(done.output("server").members[0])
([[11, 25]], ['east', 'north', 'west'])
"""

from confide.cohort.roster import Roster
from confide.secagg.amortised import Amortised
from confide.secagg.groups import Groups, GroupSums, groups_of
from confide.secagg.masked import Masked
from confide.secagg.masked_server import MaskedSums
from confide.secagg.norm_bound import NormBound
from confide.secagg.shares import Shares
from confide.secagg.shares_servers import SharesSums

__all__ = [
    "Amortised",
    "GroupSums",
    "Groups",
    "Masked",
    "MaskedSums",
    "NormBound",
    "Roster",
    "Shares",
    "SharesSums",
    "groups_of",
]
