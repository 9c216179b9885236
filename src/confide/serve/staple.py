"""What an enclave's server shows beside its evidence: from a folder, and from the vendor where that is wanted."""

from __future__ import annotations

from collections.abc import Mapping

from confide.errors import ProtocolError, ServiceError, UsageError
from confide.net.endorsements import fetch_endorsements
from confide.tee.attest import Attester
from confide.tee.enclave import Endorse
from confide.tee.endorsements import endorsed
from confide.tee.evidence import Quoted
from confide.tee.stapling import Stapler


def endorsing(attester: Attester, *, given: Mapping[str, bytes], fetch: bool) -> Endorse:
    """Return what adds endorsements to evidence.

    Args:
        attester: whose evidence it is.
        given: from a folder, by name; they stand before what came with the evidence.
        fetch: True asks the vendor for what is missing then, and keeps it while it holds.

    Raises, when called:
        UsageError: a name that no verifier knows, or a vendor that does not answer as it should.

    **Leaks**: with `fetch`, to the vendor which processor this server runs on.
    """
    staple = Stapler(attester, fetch_endorsements) if fetch else None

    def endorse(quoted: Quoted) -> Quoted:
        together = endorsed(quoted, given=given)
        try:
            return together if staple is None else staple(together)
        except (ServiceError, ProtocolError) as error:  # the vendor's, and not those of whoever asks for evidence
            raise UsageError(str(error)) from None

    return endorse
