"""Recipes: each module is one complete, named configuration and a command that runs it.

``python -m pipelines.quickstart --embeddings pool.zarr --store run.zarr --output picks`` runs a recipe on a
local cluster, or with ``--scheduler`` on any other. To make a recipe your own, copy its file and change the
values in ``build``. The ``.yaml`` files beside some of them are the same runs for ``daskcurate run``.
``embed_texts`` and ``embed_images`` make the pool, from texts and images.
"""
