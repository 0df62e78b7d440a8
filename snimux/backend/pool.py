"""Connect to a backend: which of its addresses first, and what to do while none answers.

Remembers of each address, whichever routes have it, how many connections it has, and whether it is
up. One that cannot be dialled, or fails its checks, is tried last, never not at all. It is dialled
then from here, later and later, until it answers; and often while a connection waits for it. Those
that wait have it by turns then, as fast as it answers them, or all at once would be lost in its
queue.

Sends nothing, and knows neither names nor hellos. What it remembers is this process's own: each
worker sees for itself.

Source: HAProxy (``balance``, ``rise``, ``fall``), nginx (``max_fails``), Caddy
(``lb_try_duration``, ``lb_try_interval``).
"""

import random
import socket
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Literal

import trio

from snimux.backend.balance import Turns, by_source, well_first
from snimux.backend.interface import PoolInEffect, PoolObserver
from snimux.backend.limiter import Lane, Lanes
from snimux.backend.queue import Waiter, deal
from snimux.backend.state import UP, State
from snimux.config.model import BackendDefaults
from snimux.net.dial import Dialled, NotDialled, dial
from snimux.net.loop import NOWHERE, Own
from snimux.proto.proxy_header import Endpoint, Version
from snimux.relay.interface import Tally
from snimux.routing.address import DialAddress
from snimux.routing.routes import Backend
from snimux.runtime.keyed_tasks import KeyedTasks

# Seconds between two dials of an address that somebody waits for: at first and at the most, which
# is Caddy's lb_try_interval.
_SOON, _OFTEN = 0.05, 0.25
# The same while nobody does.
_LATER, _LATEST = 1.0, 30.0
# Addresses that are dialled at a time while nobody waits, and as many that take long: each takes a
# descriptor.
_AT_A_TIME = 8


class Backends:
    """Connects to backends, and remembers how their addresses are."""

    def __init__(
        self,
        events: PoolObserver = PoolObserver(),  # noqa: B008 (hears nothing)
        defaults: BackendDefaults = BackendDefaults(),  # noqa: B008 (frozen)
        *,
        own: Own = NOWHERE,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Knows nothing yet.

        Args:
            events: hears of dials that fail, and of addresses that change; raises nothing.
            defaults: for backends that say nothing else.
            own: see ``keep_off``.
            uniform: a random number between two.
        """
        self.events = events
        self.defaults = defaults
        self.states: dict[DialAddress, State] = {}
        self.down: set[DialAddress] = set()
        """Those of the addresses that are not up."""
        self.proved: set[DialAddress] = set()
        """Those that are known to understand a PROXY protocol header."""
        self.turns: dict[Backend, Turns] = {}
        self.discovered: Set[DialAddress] = frozenset()
        """Those of the addresses that Caddys say."""
        self.current: Set[Backend] | None = None
        """All backends that there are; None: not known, so nothing is forgotten."""
        self.addresses: Set[DialAddress] = frozenset()
        """The addresses of these."""
        self.keep_off(own)
        self.uniform = uniform
        self.lanes = Lanes(_AT_A_TIME)
        self.redials = KeyedTasks(self._redial_until_up)
        self.deals = KeyedTasks(self._deal)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Dial what is silent, for ever; without it nobody is waited for, or thought down.

        Args:
            task_status: told when it does.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(self.deals.run)
            await nursery.start(self.redials.run)
            task_status.started()

    def keep_off(self, own: Own) -> None:
        """Have what leads back to snimux be down, and what is reserved where a Caddy says it."""
        self.own, self.own_of_discovered = replace(own, reserved={}), own

    def own_for(self, address: DialAddress) -> Own:
        """Return what an address must not lead to."""
        return self.own_of_discovered if address in self.discovered else self.own

    def reconcile(self, generation: PoolInEffect) -> None:
        """Serve by what is in effect now; forget what it does not have, and keep the rest.

        What still has connections, or clients that wait for it, is forgotten with the last of them.
        """
        self.defaults = generation.config.backends
        self.keep_off(generation.own)
        self.discovered = generation.discovered
        self.current = generation.backends
        self.addresses = {x for backend in self.current for x in backend.addresses}
        self.turns = {x: turns for x, turns in self.turns.items() if x in self.current}
        for address, state in list(self.states.items()):
            state.is_discovered = address in self.discovered
            self._forget(address)

    def prove(self, address: DialAddress, is_proved: bool) -> None:
        """Learn whether an address is known to understand a PROXY protocol header."""
        if is_proved:
            self.proved.add(address)
        else:
            self.proved.discard(address)

    def header_version(self, backend: Backend, address: DialAddress) -> Version | None:
        """Return the version of the PROXY protocol header for an address, or None for no header."""
        if backend.proxy != "auto":
            return backend.proxy
        return "v2" if address in self.proved else None

    async def reach(
        self,
        backend: Backend,
        client: socket.socket,
        source: Endpoint | None,
        *,
        dial_timeout: float,
        tally: Tally | None = None,
    ) -> Dialled | NotDialled:
        """Connect to one of a backend's addresses, for a client.

        Args:
            backend: which addresses, how to choose among them, and how long to wait for one.
            client: looked at while it waits: one that was reset no longer does.
            source: its address; None on a UNIX socket.
            dial_timeout: seconds that each address gets, and where many wait for one, the turn.
            tally: of what will be relayed, which shows how soon it is answered.

        Returns:
            What came of it. A socket counts as a connection to its address until ``leave``. Raises
            nothing but ``trio.Cancelled``.
        """
        addresses: Sequence[DialAddress] = backend.addresses
        if len(addresses) > 1:
            addresses = self._in_order(backend, source)
        seen_as = source if backend.transparent else None
        dialled = await self._dial(addresses, dial_timeout, seen_as)
        if isinstance(dialled, Dialled) or dialled.exhausted or not self.redials.is_running:
            return dialled
        started = trio.current_time()
        wait = self.defaults.wait if backend.wait is None else backend.wait
        if started - self._silent_since(addresses) >= wait:
            return dialled
        until = started + wait
        # Where some are answered and others are not, there is always one who just was.
        while isinstance(dialled, NotDialled) and not dialled.exhausted:
            if trio.current_time() >= until:
                break
            waiter = Waiter(tally)
            try:
                how = await self._wait(addresses, client, waiter, until, dial_timeout)
                if how == "left":
                    dialled = replace(dialled, detail=f"{dialled.detail}; the client left")
                if how == "go":
                    in_order = self._in_order(backend, source)
                    dialled = await self._dial(in_order, dial_timeout, seen_as)
            finally:  # the turn of a client that left as it came is over, too
                waiter.connected = trio.current_time()
                waiter.dialled = dialled
            if how != "go":
                break
        return replace(dialled, waited=trio.current_time() - started)

    def leave(self, address: DialAddress) -> None:
        """A connection to an address has ended."""
        state = self.states[address]
        state.connections -= 1
        if not state.connections:
            self._forget(address)

    def checked(self, address: DialAddress, passed: bool, detail: str) -> None:
        """Heed a check of an address; the detail says what came of it."""
        state = self.state(address)
        state.checked = state.checked.after(
            passed, rise=self.defaults.rise, fall=self.defaults.fall
        )
        if passed and state.silent_since is not None:
            self._answered(address, state, detail)
        self._settle(address, state, detail)

    def unchecked(self, address: DialAddress) -> None:
        """An address is checked no longer."""
        if address in self.states:
            self.states[address].checked = UP
            self._settle(address, self.states[address], "no longer checked")

    def state(self, address: DialAddress) -> State:
        """Return the state of an address; it has one from now on."""
        state = self.states.get(address)
        if state is None:
            state = self.states[address] = State(is_discovered=address in self.discovered)
        return state

    def _forget(self, address: DialAddress) -> None:
        """Forget an address that no backend has, unless somebody still has to do with it."""
        state = self.states.get(address)
        if state is None or self.current is None or address in self.addresses:
            return
        if not (state.connections or state.waiters):
            self.redials.end(address)
            self.deals.end(address)
            self.down.discard(address)
            del self.states[address]

    def _in_order(self, backend: Backend, source: Endpoint | None) -> Sequence[DialAddress]:
        """All its addresses for that source, the one first that is to have the connection."""
        in_order = self._all_in_order(backend, source)
        if not backend.transparent:
            return in_order
        usable = backend.addresses_for(source and source[0])
        return [address for address in in_order if address in usable]

    def _all_in_order(self, backend: Backend, source: Endpoint | None) -> Sequence[DialAddress]:
        addresses = backend.addresses
        balance = backend.balance or self.defaults.balance
        if balance == "first" and not self.down:
            return addresses
        well = [address not in self.down for address in addresses]
        weights = backend.weights or (1,) * len(addresses)
        if balance == "first":
            places = well_first(range(len(addresses)), well)
        elif balance == "ip_hash" and source is not None:
            names = [str(address) for address in addresses]
            places = well_first(by_source(source[0], names, weights), well)
        else:
            turns = self.turns.get(backend)
            if turns is None:
                turns = Turns(len(addresses))
                if self.current is None or backend in self.current:
                    self.turns[backend] = turns
            loads = None
            if balance == "least_conn":
                states = (self.states.get(address) for address in addresses)
                loads = [0 if state is None else state.connections for state in states]
            places = turns.order(weights, well, loads)
        return [addresses[place] for place in places]

    async def _dial(
        self, addresses: Iterable[DialAddress], dial_timeout: float, source: Endpoint | None
    ) -> Dialled | NotDialled:
        """Dial some addresses in order, from a client's if that is given, until one answers."""
        faults = []
        exhausted = False
        for address in addresses:
            state = self.state(address)
            state.connections += 1
            returns = state.returns
            dialled: Dialled | NotDialled | None = None
            try:
                own = self.own_of_discovered if state.is_discovered else self.own
                dialled = await dial(address, dial_timeout=dial_timeout, source=source, own=own)
            finally:
                if not isinstance(dialled, Dialled):
                    state.connections -= 1
                if dialled is None:  # cancelled
                    self._forget(address)
            if isinstance(dialled, Dialled):
                if state.silent_since is not None:
                    self._answered(address, state, "it answers again")
                return dialled
            faults.append(dialled.detail)
            exhausted = exhausted or dialled.exhausted
            if not dialled.exhausted:
                self.events.dial_failed(address, True)
            # One that has answered another since this dial began is not silent by it.
            if not dialled.exhausted and state.returns == returns:
                self._failed(address, state, dialled.detail, dial_timeout)
            if state.silent_since is None:  # else whoever dials it forgets it
                self._forget(address)
        return NotDialled("; ".join(faults), exhausted)

    def _silent_since(self, addresses: Iterable[DialAddress]) -> float:
        """Return since when none of the addresses answers; now, where that is not so."""
        now = trio.current_time()
        states = (self.states.get(address) for address in addresses)
        since = (None if state is None else state.silent_since for state in states)
        return max(now if x is None else x for x in since)

    async def _wait(
        self,
        addresses: Sequence[DialAddress],
        client: socket.socket,
        waiter: Waiter,
        until: float,
        dial_timeout: float,
    ) -> Literal["go", "late", "left"]:
        """Wait until one of the addresses answers, and for the turn to dial it.

        Returns:
            What to do: dial, or give up, since none answered in time or the client has left.
        """
        for address in addresses:
            if address not in self.states:  # no backend has it any more: forgotten meanwhile
                self._failed(address, self.state(address), "it did not answer", dial_timeout)
        states = [self.states[address] for address in addresses]
        if any(state.silent_since is None for state in states):
            return "go"  # since another was dialled
        for state in states:
            state.waiters[waiter] = None
            if state.leisure is not None:
                state.leisure.cancel()
        try:
            return await waiter.wait(client, states, until, dial_timeout)
        finally:
            for address, state in zip(addresses, states, strict=True):
                state.waiters.pop(waiter, None)
                if state.silent_since is None:  # else whoever dials it forgets it
                    self._forget(address)

    def _failed(self, address: DialAddress, state: State, detail: str, dial_timeout: float) -> None:
        """An address could not be dialled, and that is no fault of this machine."""
        if not self.redials.is_running:
            return
        if state.silent_since is None:
            state.silent_since = trio.current_time()
            state.dial_timeout = dial_timeout
            self.redials.begin(address)
            self._settle(address, state, detail)

    def _answered(self, address: DialAddress, state: State, detail: str) -> None:
        """An address could be dialled."""
        state.silent_since = None
        state.returns += 1
        self.redials.end(address)
        self._settle(address, state, detail)
        if state.waiters:
            self.deals.continue_or_begin(address)

    async def _deal(self, address: DialAddress) -> None:
        await deal(self.states[address])

    def _settle(self, address: DialAddress, state: State, detail: str) -> None:
        """Keep ``down`` as it should be, and say so where it changes."""
        if state.is_up == (address not in self.down):
            return
        if state.is_up:
            self.down.discard(address)
        else:
            self.down.add(address)
        self.events.backend_changed(address, state.is_up, detail.removeprefix(f"{address}: "))

    async def _redial_until_up(self, address: DialAddress) -> None:
        """Dial an address until it answers.

        One task does so for all who wait: each client's own dials would be a burst for a backend
        that is just starting, and one that has been down for days would cost each of them a dial.
        """
        often, later = _SOON, _LATER
        state, lane = self.states[address], Lane(self.lanes)
        redial = partial(self._redial, address, state.dial_timeout)
        dialled: Dialled | NotDialled | None
        while True:
            if state.waiters:
                await trio.sleep(often)
                often = min(2 * often, _OFTEN)
                dialled = await redial()
            else:
                self._forget(address)  # who waited for it may have been the last to have it
                dialled = None
                with trio.CancelScope() as state.leisure:
                    await trio.sleep(self.uniform(later / 2, later))
                    later = min(2 * later, _LATEST)
                    dialled = await lane.do(redial)
                state.leisure = None
                if dialled is None:
                    continue  # it is waited for
            if isinstance(dialled, Dialled):
                dialled.socket.close()
                # Somebody else may have said so in the same moment, or forgotten it.
                await trio.lowlevel.checkpoint_if_cancelled()
                self._answered(address, state, "it answers again")
                return
            self.events.dial_failed(address, False)

    async def _redial(self, address: DialAddress, dial_timeout: float) -> Dialled | NotDialled:
        return await dial(address, dial_timeout=dial_timeout, own=self.own_for(address))
