"""All that there is to find, the worst first."""

from snimux.diagnosis import Colour, Finding, backends, caddys, ports
from snimux.facts import Facts


def diagnose(facts: Facts) -> tuple[Finding, ...]:
    """Judge all that was found out; what is worst comes first. Raises nothing."""
    found = [*ports.findings(facts), *caddys.findings(facts), *backends.findings(facts)]
    worst_first = (Colour.RED, Colour.YELLOW, Colour.GREEN)
    return tuple(
        sorted(dict.fromkeys(found), key=lambda finding: worst_first.index(finding.colour))
    )
