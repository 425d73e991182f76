"""One module a stage of the self-play loop."""
