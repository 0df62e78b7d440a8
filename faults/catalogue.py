"""The faults there are, in the order in which they are made. The only place that lists them."""

from faults import backend, black, clock, descriptors, disk, idle, rough, routes, soak, worker
from faults.found import Fault

FAULTS = (
    Fault("backend", "a backend killed and restarted under load", backend.missing, backend.run),
    Fault("rough", "paths that lose, double, overtake and delay", rough.missing, rough.run),
    Fault("black", "a path that goes black midway", black.missing, black.run),
    Fault("descriptors", "descriptors exhausted", descriptors.missing, descriptors.run),
    Fault("disk", "a full disk under the log", disk.missing, disk.run),
    Fault("worker", "a worker killed under load", worker.missing, worker.run),
    Fault("clock", "the clock jumps", clock.missing, clock.run),
    Fault("idle", "10,000 idle connections", idle.missing, idle.run),
    Fault("routes", "100,000 routes", routes.missing, routes.run),
    Fault("soak", "a mixed load for minutes", soak.missing, soak.run),
)
