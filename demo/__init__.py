"""``make demo``: two real Caddys on one host, snimux in front, a client that asks for each name.

Reading order: ``secure/Caddyfile`` and ``dao/Caddyfile`` (the two servers, as a person would write
them), ``client`` (ask for a name), ``processes`` (start the Caddys and snimux), ``report`` (was it
right, and how that looks), ``story`` (all of it in order), ``__main__`` (argv and exit status).
"""
