"""Judge a host by all that was found out of it, the worst first."""

from snimux.doctor import backends, caddys, ports
from snimux.doctor.facts import Facts
from snimux.doctor.findings import Colour, Finding


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Judge all that was found out; what is worst comes first. Raises nothing."""
    findings = [*ports.findings(facts), *caddys.findings(facts), *backends.findings(facts)]
    worst_first = (Colour.RED, Colour.YELLOW, Colour.GREEN)
    return tuple(
        sorted(dict.fromkeys(findings), key=lambda finding: worst_first.index(finding.colour))
    )
