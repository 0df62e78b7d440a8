"""Sockets: listen, dial, look a name up, ask for one small page.

Refuses to know: hellos, routes and configurations. Begin with ``listeners`` for what comes in, and
with ``dial`` for what goes out.
"""
