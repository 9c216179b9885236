"""The roster under the name that this room knows it by; it is the cohort's (`confide.cohort.roster`)."""

from confide.cohort.roster import IDENTITY, ROSTER, Roster, enrol, identity, pinned, register

__all__ = ["IDENTITY", "ROSTER", "Roster", "enrol", "identity", "pinned", "register"]
