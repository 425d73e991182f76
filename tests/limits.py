"""How long tests wait for what must end by itself."""

HANGS_SECONDS = 600.0  # what takes longer hangs: of two machines, one may be eight times slower
