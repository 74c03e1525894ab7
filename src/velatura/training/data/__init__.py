"""What a training step reads: pictures as VAE latents and captions as conditioning, encoded once and cached in
memory and on disk.

Also resolution buckets, and the fingerprint by which `resume` notices changed pictures. Open `cache.py` first:
`encode_dataset` builds all of it.
"""
