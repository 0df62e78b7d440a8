"""snimux: one port 443, many servers behind it, no keys handed over.

A TCP server that reads just enough of the TLS ClientHello to learn the server name (and ALPN),
and splices the raw stream to the right backend. It never terminates TLS.

A package imports only packages of lower levels; each says in its docstring where to begin. Those
marked * know no trio, no socket, no clock and no log:

0. ``runtime`` (the process beneath: clock, threads, files), ``proto``* (first bytes -> a verdict),
   ``relay`` (two sockets until both are done), ``log``, ``text``* (what may stand in a line),
   ``extras``* (what to install)
1. ``routing``* (a hello -> a route)
2. ``config``* (flags and file -> one value), ``net`` (listen, dial, look up)
3. ``backend`` (reach one: choose, queue, check)
4. ``frontend`` (accept, serve one connection, say how it went), ``providers`` (where routes come
   from besides the configuration)
5. ``status`` (metrics, pages and API of a running snimux), ``doctor`` (what is wrong on this host)
6. ``service`` (processes: serve, reload, workers, upgrade), ``explain`` (what becomes of one
   client, and why), ``top`` (a running snimux in a terminal)
7. ``cli`` (the commands)
"""

__version__ = "0.1.0"
