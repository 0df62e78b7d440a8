"""Get routes from elsewhere than the configuration, and merge all of them.

``caddy`` is one such source; ``discovery`` follows it; ``merge`` says who has a name that several
claim.

Refuses to know: connections, and how routes are put into effect. A new source of routes is a module
or a package here.
"""
