"""How errors, deadlines and servers look on the wire. The only room that knows gRPC's status codes.

``status`` and ``channel`` serve clients too and need grpcio alone; ``edge`` and ``server`` need the ``service`` extra.
"""
