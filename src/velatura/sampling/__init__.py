"""Recipe in, picture out."""
