"""The second built-in world: emoji, which others drew and named."""
