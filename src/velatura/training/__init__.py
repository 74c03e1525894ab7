"""A plan in, an overlay out."""
