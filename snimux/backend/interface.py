"""Say what a pool of backends reads of what is in effect, and who hears what happens to it."""

from collections.abc import Set
from typing import Protocol

from snimux.config.model import Config
from snimux.net.loop import Own
from snimux.routing.address import DialAddress
from snimux.routing.routes import Backend


class PoolObserver:
    """Hears nothing of the pool; whoever has a use for an event overrides its method."""

    def dial_failed(self, address: DialAddress, is_for_client: bool) -> None:
        """Hear of an address that did not answer: a connection's dial, or a watch's."""

    def backend_changed(self, address: DialAddress, is_up: bool, why: str) -> None:
        """Hear of an address that went down, or is up again."""


class PoolInEffect(Protocol):
    """The part of what is in effect that a pool reads."""

    @property
    def config(self) -> Config:
        """The defaults for backends that say nothing else."""

    @property
    def backends(self) -> Set[Backend]:
        """All that there are."""

    @property
    def discovered(self) -> Set[DialAddress]:
        """The addresses that only a provider says."""

    @property
    def own(self) -> Own:
        """All that leads back to snimux, and that is reserved."""
