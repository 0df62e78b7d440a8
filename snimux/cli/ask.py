"""Ask whoever can be asked: the Caddys, the backends and this host; each once."""

from collections.abc import Iterable
from functools import partial

import click
import trio

from snimux.backend.proxy_auto import Remark, ask_all, concluded, probes_for, remark
from snimux.config.model import Config
from snimux.config.settings import table_of
from snimux.doctor.facts import Facts
from snimux.providers.base import Snapshot
from snimux.providers.discovery import ask_once, faults_of
from snimux.providers.merge import Plan
from snimux.routing.address import ProviderAddress
from snimux.routing.routes import Route

search_option = click.option(
    "--no-search",
    is_flag=True,
    help="only look at the Caddys that are named; leave others that run here alone",
)


def ask_providers(config: Config) -> tuple[dict[ProviderAddress, Snapshot], list[str]]:
    """Return what each provider serves that answers, and a line for each that does not."""
    answers = trio.run(ask_once, config.providers)
    snapshots = {address: x for address, x in answers.items() if isinstance(x, Snapshot)}
    faults = [
        f"{table_of(address).flag}: {fault}"
        for address, answer in answers.items()
        for fault in faults_of(address, answer)
    ]
    return snapshots, faults


def ask_backends(routes: Iterable[Route], plan: Plan) -> list[Remark]:
    """Probe the backends of routes whose PROXY protocol is auto; return what each has answered."""
    specs = probes_for(routes, plan.listeners)
    learnt = trio.run(ask_all, specs)
    return [remark(x, concluded(None, learnt[x]), learnt[x], specs[x]) for x in specs]


def ask_host(config: Config, *, search: bool) -> Facts:
    """Return what can be seen of this host, of the Caddys of a configuration, and of its routes.

    Args:
        config: may have no route.
        search: whether to look for Caddys that it does not name, too.
    """
    # psutil is slow to import, and --help needs none.
    from snimux.doctor.examine import examine

    return trio.run(partial(examine, config, search=search))
