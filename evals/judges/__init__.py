"""Who answers about generated images, and how far that can be trusted."""
