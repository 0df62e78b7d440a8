"""Have what a failed connection puts in doubt looked at anew: a backend, and where a name leads."""

from snimux.backend.proxy_auto import Prober
from snimux.frontend.events import Observer
from snimux.frontend.outcome import Outcome
from snimux.net.resolver import Resolver
from snimux.routing.address import DialAddress, TcpAddress

# Bytes: an answer that is none, or a refusal of a PROXY protocol header (an alert; nginx's and
# Caddy's HTTP 400), is shorter, and the first flight of a TLS handshake is longer.
_SHORT = 512


class Recheck(Observer):
    """Asks the prober and the resolver to look again."""

    def __init__(self, prober: Prober, resolver: Resolver) -> None:
        self._prober = prober
        self._resolver = resolver

    def ended(self, outcome: Outcome) -> None:
        """Probe a backend anew that answered so little that it may have refused a header."""
        if outcome.to is not None and outcome.tally.down < _SHORT:
            self._prober.doubt(outcome.to)

    def dial_failed(self, address: DialAddress, is_for_client: bool) -> None:
        """Look up a name anew at whose addresses nobody answered: it may have others by now."""
        if isinstance(address, TcpAddress) and not address.is_numeric:
            self._resolver.refresh(address.host)
