"""One request to a coordinator, over a connection without a certificate: for those who have none, or whose has expired.

connect (TLS 1.3, the coordinator's certificate and identity are checked), one binary WebSocket message there, one
back, or a close frame with the reason
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence

from confide.errors import MissingExtra, ProtocolError, UsageError
from confide.net.contexts import anonymous_context, check_coordinator, explain
from confide.net.enrolment import LARGEST_BODY_BYTES
from confide.net.founding import utc_now
from confide.net.membership import Ask

_CONNECT_SECONDS, _ANSWER_SECONDS = 20.0, 60.0


def asking(url: str, authorities: Sequence[bytes], identity: bytes, *, proxy: str | None = None) -> Ask:
    """Return a function that carries a request's body to the coordinator and returns the answer's.

    Args:
        url: "wss://host:port".
        authorities: DER; whose certificate the coordinator must show.
        identity: the coordinator's Ed25519 public key, 32 bytes.
        proxy: "http://host:port" of an HTTP proxy to go through; it sees the coordinator's address, and no more.

    The function raises UsageError if there is no way to that coordinator, ProtocolError if it refused.
    """

    def ask(body: bytes) -> bytes:
        try:
            from websockets.exceptions import ConnectionClosed, WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            raise MissingExtra("websockets", "federate") from None
        context = anonymous_context(authorities)
        try:
            with connect(
                url, ssl=context, proxy=proxy, open_timeout=_CONNECT_SECONDS, max_size=LARGEST_BODY_BYTES
            ) as connection:
                assert isinstance(connection.socket, ssl.SSLSocket)
                check_coordinator(connection.socket, identity)
                connection.send(body)
                answer = connection.recv(_ANSWER_SECONDS)
        except ssl.SSLError as error:
            raise UsageError(f"No connection to {url}: {explain(error, now=utc_now())}") from None
        except TimeoutError:
            raise UsageError(f"No answer from {url} in time; try again, the same request is sent") from None
        except ConnectionClosed as closed:
            reason = "" if closed.rcvd is None else "".join(filter(str.isprintable, closed.rcvd.reason))
            raise ProtocolError(f"The coordinator refused: {reason or 'it hung up'}") from None
        except OSError as error:
            raise UsageError(
                f"No connection to {url}: {error.strerror or 'it was cut'}; is a coordinator running there? Check "
                "address, firewall and proxy, then try again"
            ) from None
        except (WebSocketException, ValueError) as error:  # ValueError: a proxy whose address is none
            raise UsageError(
                f"No connection to {url}: {type(error).__name__}; check that a coordinator answers there, and the proxy"
            ) from None
        if not isinstance(answer, bytes):
            raise ProtocolError("Expected a well-formed answer of the coordinator")
        return answer

    return ask
