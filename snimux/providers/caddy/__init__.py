"""A Caddy as a source of routes: its running configuration, asked for at its admin API.

``admin`` asks; ``document`` takes the answer apart; ``read`` derives from the JSON what is served
where, as Caddy does; ``sites`` has the values.

Refuses to know: the routes of others, and who of several has a name.
"""
