"""Find out all that there is to know of the Caddys of a host and of snimux's way to them.

Looks at the system, asks every Caddy that was named or found, and shakes hands with every backend
for each of its names: all at once, each within its time, and all within one. Only ever looks; what
it means is ``diagnosis``'s to say.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import trio

from snimux.backend.probe import Unreached, ask, ask_both, by_http, by_tls
from snimux.config.load import with_caddys
from snimux.config.model import Config
from snimux.doctor.certificate import certificate
from snimux.doctor.facts import (
    Caddy,
    Certificate,
    Contact,
    Facts,
    NoHandshake,
    Port,
    Probed,
    Unread,
)
from snimux.doctor.host import Running, Survey, survey
from snimux.net.dial import RESERVED, Dialled, NotDialled, dial
from snimux.net.loop import NOWHERE, Own
from snimux.proto.client_hello import TLS
from snimux.proto.http_head import HTTP
from snimux.proto.proxy_header import Version, build
from snimux.providers.base import Snapshot, Unrouted
from snimux.providers.caddy.admin import AdminError, look
from snimux.providers.discovery import ask_once, faults_of
from snimux.providers.merge import DEFAULT_ADMIN, Plan, planned, reserved
from snimux.routing.address import (
    AddressError,
    AdminAddress,
    DialAddress,
    FileAddress,
    TcpAddress,
    is_own,
    parse_admin,
)
from snimux.routing.routes import Route
from snimux.text import listed

# Seconds: for a Caddy's answer, for a handshake, for all handshakes together, and for all other
# requests. Everything is on this host or near; a person waits.
_ANSWER, _HANDSHAKE, _HANDSHAKES, _PROBES = 5.0, 5.0, 15.0, 8.0

_AT_ONCE = 32  # handshakes: each costs the server a signature

# So many handshakes are some seconds of a Caddy's time; who has more names, has the like of them.
_MOST_HANDSHAKES = 1000

_SHARED = "another process has the same address, and answers in its place at random"


async def examine(config: Config, *, search: bool = True) -> Facts:
    """Find everything out, in half a minute at the most; mostly in less than one second.

    Args:
        config: what snimux was told; where it is nothing, the Caddys that are found are it.
        search: look for Caddys that were not named, too.
    """
    seen = await trio.to_thread.run_sync(survey)
    to_ask = _to_ask(config.caddys, seen, search=search)
    caddys = _once(await _ask_all(to_ask, seen.ports, config.caddys), seen.ports)
    answers = await ask_once(set(config.providers) - set(config.caddys))
    if not (config.routes or config.providers):
        answered = [x.admin for x in caddys if x.admin and x.sites is not None]
        config = with_caddys(config, answered)
    named = set(config.caddys)
    caddys = [replace(x, is_listed=x.is_listed or x.admin in named) for x in caddys]
    snapshots = {x: answer for x, answer in answers.items() if isinstance(answer, Snapshot)}
    plan = planned(config, {**snapshots, **{x.admin: x.sites for x in caddys if x.admin}})
    on_demand = _on_demand(x for x in caddys if x.admin in named)
    own = Own(reserved=reserved(config))
    plan = await _with_refused(plan, own)
    contacts, unseen = await _contact_all(plan, on_demand, own)
    probed, more_unseen = await _probe_all(plan, on_demand, own)
    return Facts(
        now=time.time(),
        tls=config.addresses(TLS),
        http=config.addresses(HTTP),
        plan=plan,
        faults=tuple(fault for x in answers for fault in faults_of(x, answers[x])),
        ports=seen.ports,
        caddys=tuple(caddys),
        contacts=contacts,
        probed=probed,
        unseen=(*seen.unseen, *unseen, *more_unseen),
    )


# --- the Caddys


def _to_ask(
    listed: Sequence[AdminAddress], seen: Survey, *, search: bool
) -> list[Running | AdminAddress]:
    """Every Caddy once: those that run, with where they may be asked; and further addresses."""
    running = []
    for each in seen.caddys:
        named = [admin for admin in listed if _is_at(each, admin, seen.ports)]
        if named or search:
            further = [x for x in each.admins if not any(_same(x, admin) for admin in named)]
            running.append(replace(each, admins=(*named[:1], *further)))
    placed = [admin for each in running for admin in each.admins]
    further = [*listed, *(_default(seen.ports) if search else ())]
    rest = [x for x in further if not any(_same(x, admin) for admin in placed)]
    return [*running, *dict.fromkeys(rest)]


def _is_at(running: Running, admin: AdminAddress, ports: Iterable[Port]) -> bool:
    """Return whether an address is a Caddy process's: its file says so, or it listens there."""
    held = [port.address for port in ports if running.process in port.holders]
    return any(_same(admin, x) for x in running.admins) or (
        not isinstance(admin, FileAddress) and is_own(held, admin)
    )


def _default(ports: Iterable[Port]) -> Iterator[AdminAddress]:
    if any(port.kind == "tcp" and is_own([port.address], DEFAULT_ADMIN) for port in ports):
        yield DEFAULT_ADMIN


def _same(one: AdminAddress, other: AdminAddress) -> bool:
    if isinstance(one, FileAddress) or isinstance(other, FileAddress):
        return one == other
    return is_own([one], other)


async def _ask_all(
    to_ask: Sequence[Running | AdminAddress],
    ports: Sequence[Port],
    listed: Sequence[AdminAddress],
) -> list[Caddy]:
    caddys: dict[int, Caddy] = {}

    async def ask(number: int, each: Running | AdminAddress) -> None:
        caddys[number] = await _ask(each, ports, listed)

    async with trio.open_nursery() as nursery:
        for number, each in enumerate(to_ask):
            nursery.start_soon(ask, number, each)
    return [caddys[number] for number in sorted(caddys)]


async def _ask(
    each: Running | AdminAddress, ports: Sequence[Port], listed: Sequence[AdminAddress]
) -> Caddy:
    """Ask one Caddy, at one of its addresses after the other until it answers as a Caddy does.

    One that is listed does not tell if it does so elsewhere only: there snimux will not ask it.
    """
    process = each.process if isinstance(each, Running) else None
    admins, fault = _usable(each.admins if isinstance(each, Running) else (each,))
    if not admins:
        return Caddy(None, None, fault or "no admin API was found", process)
    if any(_is_shared(admin, ports) for admin in admins[: 1 if admins[0] in listed else None]):
        return Caddy(admins[0], None, _SHARED, process)
    with trio.move_on_after(_ANSWER):
        for admin in admins:
            try:
                sites = await look(admin)
            except AdminError as error:
                fault = fault or str(error)
                continue
            if admins[0] not in listed or admin == admins[0]:
                return Caddy(admin, sites, process=process)
            if not isinstance(admin, FileAddress):
                return Caddy(admins[0], None, fault, process, answers_at=admin)
    if isinstance(each, Running) and each.is_guess and not {*listed, DEFAULT_ADMIN} & set(admins):
        return Caddy(None, None, "no admin API was found", process)
    return Caddy(admins[0], None, fault or f"no answer in {_ANSWER:g} s", process)


def _usable(admins: Iterable[AdminAddress]) -> tuple[list[AdminAddress], str]:
    """Return those that snimux takes when they are written down, and why it takes another not."""
    usable, fault = [], ""
    for admin in admins:
        try:
            usable.append(parse_admin(str(admin)))
        except AddressError as error:
            fault = f"{admin}: {error}"
    return usable, fault


def _once(caddys: Iterable[Caddy], ports: Sequence[Port]) -> list[Caddy]:
    """Without those that have the address of another: a process that is about to end, say."""
    by_key: dict[object, Caddy] = {}
    for number, caddy in enumerate(caddys):
        has_address = caddy.sites is not None and not isinstance(caddy.admin, FileAddress)
        key = caddy.admin if has_address else number
        holds = any(caddy.process in port.holders for port in ports if caddy.process)
        if key not in by_key or holds:
            by_key[key] = caddy
    return list(by_key.values())


def _is_shared(admin: AdminAddress, ports: Iterable[Port]) -> bool:
    return isinstance(admin, TcpAddress) and any(
        len(port.holders) > 1 and port.kind == "tcp" and is_own([port.address], admin)
        for port in ports
    )


# --- the backends


@dataclass(frozen=True, slots=True)
class _Handshake:
    name: str
    address: DialAddress
    proxy: Version | Literal["auto"] | None


def _on_demand(caddys: Iterable[Caddy]) -> dict[DialAddress, str]:
    """Return where a handshake may make a Caddy ask for a certificate, and which Caddy."""
    return {
        listener.address: str(caddy)
        for caddy in caddys
        if caddy.sites and caddy.sites.on_demand
        for server in caddy.sites.servers
        for listener in server.listeners
    }


async def _with_refused(plan: Plan, own: Own) -> Plan:
    """A plan that also refuses what leads to what is reserved by a name or a link."""
    ports = {x.port for x in own.reserved if isinstance(x, TcpAddress)}
    unrouted: list[Unrouted] = []
    with trio.move_on_after(_PROBES):
        for address in plan.discovered:
            if not isinstance(address, TcpAddress) or address.port in ports:
                dialled = await dial(address, dial_timeout=_HANDSHAKE, own=own)
                if isinstance(dialled, Dialled):
                    dialled.socket.close()
                elif dialled.detail.endswith(RESERVED):
                    unrouted.append(Unrouted(str(address), dialled.detail, at=(address,)))
    return replace(plan, refused=(*plan.refused, *unrouted))


async def _contact_all(
    plan: Plan, on_demand: Mapping[DialAddress, str], own: Own
) -> tuple[tuple[Contact, ...], tuple[str, ...]]:
    """Shake hands for each name of a route with each of its addresses; and what was left out."""
    handshakes = list(dict.fromkeys(_handshakes(plan)))
    allowed = [x for x in handshakes if x.address not in on_demand][:_MOST_HANDSHAKES]
    made: dict[_Handshake, Contact] = {}
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def make(each: _Handshake) -> None:
        async with limit:
            made[each] = await _contact(each, own if each.address in plan.discovered else NOWHERE)

    with trio.move_on_after(_HANDSHAKES):
        async with trio.open_nursery() as nursery:
            for each in allowed:
                nursery.start_soon(make, each)
    unseen = [
        f"the certificates of {caddy}: a handshake may make it ask for one (on-demand TLS)"
        for caddy in dict.fromkeys(
            on_demand[x.address] for x in handshakes if x.address in on_demand
        )
    ]
    left = len([x for x in handshakes if x.address not in on_demand]) - len(made)
    unseen += [f"{left} more names: there was no time for their handshakes"] if left else []
    return tuple(made[each] for each in allowed if each in made), tuple(unseen)


async def _contact(each: _Handshake, own: Own) -> Contact:
    """Shake hands as clients would by the route; where that fails, try if the header is why."""
    ask = partial(certificate, each.name, each.address, within=_HANDSHAKE, own=own)
    sent = None if each.proxy == "auto" else each.proxy
    outcome, other_way = await ask(proxy=sent), False
    if isinstance(outcome, NoHandshake):
        again = await ask(proxy=None if sent else "v2")
        other_way = isinstance(again, Certificate | Unread)
        if other_way and each.proxy == "auto":
            outcome, other_way = again, False
    return Contact(each.name, each.address, outcome, sent is not None, other_way)


def _handshakes(plan: Plan) -> Iterator[_Handshake]:
    for route in plan.routes:
        backend = route.targets.get(TLS.name)
        if backend is not None and _has_name(route):
            for address in backend.addresses:
                yield _Handshake(route.pattern.host, address, backend.proxy)


def _has_name(route: Route) -> bool:
    """Return whether there is a name to shake hands for.

    What a wildcard stands for is not known, and an ALPN protocol of its own may be no TLS server as
    clients know it.
    """
    return route.pattern.alpn is None and "*" not in route.pattern.host


@dataclass(frozen=True, slots=True)
class _Probe:
    address: DialAddress
    is_http: bool
    proxy: Version | Literal["auto"] | None


async def _probe_all(
    plan: Plan, on_demand: Mapping[DialAddress, str], own: Own
) -> tuple[tuple[Probed, ...], tuple[str, ...]]:
    """Ask each address of a backend once that no handshake is made with; and what is not seen."""
    probes: dict[_Probe, Route] = {}
    for probe, route in _probes(plan, on_demand):
        probes.setdefault(probe, route)
    made: dict[_Probe, Probed] = {}
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def make(probe: _Probe, route: Route) -> None:
        async with limit:
            guard = own if probe.address in plan.discovered else NOWHERE
            made[probe] = await _probe(probe, route, guard, is_quiet=probe.address in on_demand)

    with trio.move_on_after(_PROBES):
        async with trio.open_nursery() as nursery:
            for probe, route in probes.items():
                nursery.start_soon(make, probe, route)
    left = len(probes) - len(made)
    unseen = [f"{left} more backends: there was no time to ask them"] if left else []
    nameless = [str(x.pattern) for x in plan.routes if TLS.name in x.targets and not _has_name(x)]
    if nameless:
        unseen.append(f"the certificates for {listed(nameless)}: clients choose the names")
    return tuple(made[probe] for probe in probes if probe in made), tuple(unseen)


def _probes(plan: Plan, on_demand: Mapping[DialAddress, str]) -> Iterator[tuple[_Probe, Route]]:
    shaken = {(x.address, x.proxy) for x in _handshakes(plan) if x.address not in on_demand}
    for route in plan.routes:
        for protocol, backend in route.targets.items():
            is_http = protocol == HTTP.name
            for address in backend.addresses:
                if is_http or (address, backend.proxy) not in shaken:
                    yield _Probe(address, is_http, backend.proxy), route


async def _probe(probe: _Probe, route: Route, own: Own, *, is_quiet: bool) -> Probed:
    """Ask with the header of the route and without; by TLS only dial where all else has effects."""
    address, version = probe.address, probe.proxy
    done = Probed(str(route.pattern), address, probe.is_http)
    if is_quiet and not probe.is_http:
        dialled = await dial(address, dial_timeout=_HANDSHAKE, own=own)
        if isinstance(dialled, NotDialled):
            return replace(done, down=dialled.detail.removeprefix(f"{address}: "))
        dialled.socket.close()
        return done
    name = route.pattern.host if _has_name(route) else "localhost"
    question = by_http(name) if probe.is_http else by_tls(None)
    answers = await ask_both(address, question, own=own)
    if version == "v1":
        answers = replace(
            answers, with_header=await ask(address, question, build("v1", None, None))
        )
    if isinstance(answers.without, Unreached) and isinstance(answers.with_header, Unreached):
        return replace(done, down=answers.without.detail)
    is_sent = version in ("v1", "v2")
    other_way = answers.refuses if is_sent else answers.requires and version != "auto"
    return replace(done, proxy=is_sent, other_way=other_way)
