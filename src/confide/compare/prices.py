"""What CPU time and sent bytes cost: list prices, marked as published, which a job file may replace.

They are figures of a provider and not of this machine; no record says otherwise.
"""

from __future__ import annotations

import msgspec


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Prices in US dollars.

    Args:
        client_core_hour_dollars: of one core of whoever holds records or asks, for an hour, >= 0.
        server_core_hour_dollars: of one core of every other role, for an hour, >= 0.
        gigabyte_dollars: of 10^9 bytes that anybody sends, >= 0.
        source: where they are from, and when.
    """

    client_core_hour_dollars: float
    server_core_hour_dollars: float
    gigabyte_dollars: float
    source: str

    def dollars(self, *, client_seconds: float, server_seconds: float, sent_bytes: float) -> float:
        """Return what so much work and traffic costs.

        Args:
            client_seconds, server_seconds: of one core, over all parties of a side together.
            sent_bytes: by everybody.
        """
        work = client_seconds * self.client_core_hour_dollars + server_seconds * self.server_core_hour_dollars
        return work / 3600 + sent_bytes / 1e9 * self.gigabyte_dollars


#: Half of a c7i.large (2 vCPU, 0.08925 USD an hour) for a core, and traffic to the internet below 10 TB a month.
#: The first is from AWS's price list as github.com/aws/karpenter-provider-aws keeps it
#: (pkg/providers/pricing/zz_generated.pricing_aws.go, generated 2026-01-19 for us-east-1); the second is how that list
#: and bills word it, "$0.090 per GB - first 10 TB / month data transfer out beyond the global free tier" (June 2026).
PUBLISHED = Prices(
    client_core_hour_dollars=0.0446,
    server_core_hour_dollars=0.0446,
    gigabyte_dollars=0.09,
    source=(
        "published: Amazon Web Services, on demand, us-east-1, c7i.large (list of January 2026) and data transfer out "
        "(June 2026)"
    ),
)
