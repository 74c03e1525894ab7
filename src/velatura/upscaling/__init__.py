"""Upscale images by networks: ESRGAN, BSRGAN, Real-ESRGAN and its compact networks, from the files that people have.

read_upscaler.py is the file to open first: it tells what a file holds, and opens it. networks.py has the networks,
weights_file.py loads their weights, and tiles.py applies them to images of any size, tile by tile.
"""

from velatura.upscaling.read_upscaler import Upscaler, detect_upscaler, open_upscaler
from velatura.upscaling.tiles import upscale_image

__all__ = ["Upscaler", "detect_upscaler", "open_upscaler", "upscale_image"]
