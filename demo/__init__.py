"""``make demo``: two real Caddys on one host, in each other's way; then with snimux in front.

Reading order: ``before/*.Caddyfile`` (the two servers as they are at first), ``secure/Caddyfile``
and ``dao/Caddyfile`` (the same, with a place of its own for each), ``client`` (ask for a name),
``processes`` (start the Caddys and snimux), ``doctor`` (ask ``snimux doctor``), ``before`` (count
what fails), ``report`` (was it right, and how that looks), ``story`` (all of it in order),
``__main__`` (argv and exit status).
"""
