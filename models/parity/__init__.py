"""Numbers of the published implementation, and whether this one gives them too."""
