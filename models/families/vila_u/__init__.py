"""The VILA-U family: residual codes, read and drawn; a transformer over depths draws them."""
