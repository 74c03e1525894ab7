"""Overlays into weights: baked into a base, or written as an overlay of another kind."""
