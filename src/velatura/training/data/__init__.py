"""Encoded training data: pictures as VAE latents and captions as conditioning, cached in memory and on disk.

Also aspect ratio buckets, and the fingerprint by which `resume` notices changed pictures. Open `cache.py` first:
`encode_dataset` builds everything.
"""
