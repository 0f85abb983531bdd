"""Ways to get a Dask client; a module a kind of machine.

The package itself runs on whatever client it is given, or on the one in force; nothing here is needed
beyond that. Each module is both an importable context manager and a command that keeps a cluster up for
others to connect to.
"""
