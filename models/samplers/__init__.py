"""Ways to sample that families share, each from noise by record."""
