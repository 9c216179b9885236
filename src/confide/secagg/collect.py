"""The collector under the name that this room knows it by; it is the cohort's (`confide.cohort.collect`)."""

from confide.cohort.collect import SMALLEST_SUM, Collector

__all__ = ["SMALLEST_SUM", "Collector"]
