"""Models that look at pictures: whole CLIPs of transformers and open_clip, and DINO.

clip_pair.py is the file to open first; it uses open_clip.py for open_clip's folders. dino.py opens a DINO.
"""
