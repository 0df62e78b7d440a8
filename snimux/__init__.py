"""snimux: one port 443, many servers behind it, no keys handed over.

A TCP server that reads just enough of the TLS ClientHello to learn the server name (and ALPN),
and splices the raw stream to the right backend. It never terminates TLS.

Reading order, lowest floor first; a file imports only from lower floors, and floors 0 to 2 know
no trio, no socket, no clock and no log:

0. ``hostname`` (names and patterns), ``meant`` (what a mistake was meant to be), ``address`` (where
   to listen or dial), ``verdict`` (what a peek can conclude), ``networks`` (CIDR), ``pace`` (how
   fast one may come), ``balance`` (which of
   several addresses first), ``health`` (what checks say), ``window`` (how many at a time),
   ``dump`` (a capture -> bytes), ``farewells`` (what clients make of refusals),
   ``kept`` (what the last refused sent)
1. ``client_hello`` and ``http_head`` (bytes -> verdict), ``proxy_header`` (PROXY protocol),
   ``access`` (who is served),
   ``routes`` ((name, ALPN) -> backend), ``overlap`` (which addresses are each other),
   ``reasons`` (why one is refused, in words)
2. ``settings`` (each key and flag), ``sources`` (flags, or TOML -> what they say), ``config`` (both
   -> Config), ``difference`` (of two Configs), ``caddy`` (Caddy's configuration -> routes),
   ``caddy_json`` (the bytes of one -> what it serves),
   ``facts`` (what the doctor found), ``advice`` (what to write), ``diagnosis`` (how it is; the
   package itself first, ``judge`` last), ``case`` (a name, or bytes -> a hello),
   ``explanation`` (why it goes where it goes), ``overview`` (the pages of a running snimux -> a
   tree of rows), ``columns`` (rows -> text)
3. ``background`` (long work beside who serves), ``clock`` (time, which stands while the process is
   stopped), ``log`` (fields -> one line on a stream), ``batching`` (many in one go),
   ``relay`` (two sockets until both are done),
   ``transparent`` (dial as a client), ``upstream`` (dial an address), ``backends`` (dial one of
   several, or wait for it), ``names`` (look names up), ``listeners`` (listen), ``places`` (count
   connections), ``systemd`` (what is handed over, how the service is), ``shim`` (become a
   program), ``orders`` (to workers), ``watch`` (see a file change), ``fetch`` (a small GET),
   ``admin`` (ask a Caddy), ``running`` (what a running snimux shows), ``probe`` (ask a
   backend whether it understands the PROXY protocol), ``survey`` (look at the system),
   ``certificate`` (see a backend's), ``report`` (findings -> words),
   ``questions`` (ask a worker, answer a supervisor), ``pages`` (serve some to this machine alone),
   ``checkup`` (the doctor, now and then); in
   ``relay`` the interface first, then ``portable``, then ``engine``
4. ``connection`` (one connection's life), ``doors`` (accept them, where there is room),
   ``shares`` (how many one source may have), ``ends`` (tell how they ended),
   ``reload`` (another configuration while connections are
   served), ``discovery`` (the route table as the Caddys change), ``proxy_auto`` (which backends
   understand the PROXY protocol), ``checks`` (which are up), ``pulse`` (see that connections are
   served), ``spawn`` (start a program that is handed descriptors),
   ``upgrade`` (start a successor, relieve a predecessor), ``figures`` (count what becomes
   of connections), ``view`` (what a process tells of itself), ``exposition`` (figures -> what
   Prometheus reads), ``status`` (the pages of a running snimux), ``looking`` (ask for them every
   so often), ``live`` (the one that moves; it is in ``page``),
   ``showing`` (until another process does), ``life`` (what a process is told, and its end)
5. ``server`` (puts these together), ``doctor`` (find out all that ``diagnosis`` judges),
   ``description`` (a configuration in words), ``account`` (an explanation in words),
   ``screen`` (a running snimux in a terminal), ``handed`` (what a worker is handed),
   ``worker`` (one that is alive)
6. ``supervisor`` (several workers on the same sockets)
7. ``flags`` (those that all commands share -> Config), ``process`` (become a server, or several)
8. ``cli`` (argv -> a running server and an exit status)
"""

__version__ = "0.1.0"
