"""The built-in world of coloured shapes: scenes, pictures, language and an exact oracle."""
