"""Published weights in and out: `hermesflow import` and `hermesflow export`."""
