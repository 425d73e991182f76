"""Published weights in and out: `python -m models.checkpoints import|export`."""
