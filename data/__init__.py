"""Tables on disk and the worlds that fill them."""
