"""Image-caption collections of any origin as pools: `hermesflow ingest`.

One module a format yields raw records lazily, `normalise` makes rows of them, `run` writes parts.
"""
