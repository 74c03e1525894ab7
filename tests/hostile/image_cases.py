"""Hostile pictures, for data sets and for the recipes in them; and pictures cut short."""

import io
import struct
import zlib

from PIL import Image

from tests.hostile.cases import LOAD, REFUSE, WARN, Case, bytes_file

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MODE_1, GREY, RGB, RGBA = (1, 0), (8, 0), (8, 2), (8, 6)  # bits and colour type


def chunk(kind, body=b"", *, checksum=None, length=None):
    """Return a chunk of a PNG, with a wrong checksum or length if one is given."""
    checksum = zlib.crc32(kind + body) if checksum is None else checksum
    return struct.pack(">I", len(body) if length is None else length) + kind + body + struct.pack(">I", checksum)


def header(width, height, form=RGB):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *form, 0, 0, 0))


def pixels(width, height, form=RGB, value=b"\x80"):
    bits = form[0] * {0: 1, 2: 3, 6: 4}[form[1]]
    line = b"\0" + value * ((width * bits + 7) // 8)
    packer = zlib.compressobj(1)
    return b"".join([*(packer.compress(line) for _ in range(height)), packer.flush()])


def png(*chunks, width=32, height=24, form=RGB, value=b"\x80"):
    """Return a PNG with more chunks before its pixels."""
    return b"".join(
        [SIGNATURE, header(width, height, form), *chunks, chunk(b"IDAT", pixels(width, height, form, value)), END]
    )


END = chunk(b"IEND")
PLAIN = png()
ORDINARY = Image.frombytes("RGB", (32, 24), bytes(range(256)) * 9)
TRANSPARENT = png(form=RGBA, value=b"\0")


def saved(image=ORDINARY, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_orientation(orientation, kind="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(kind=kind, exif=exif)


def frames(count):
    return [Image.new("RGB", (32, 24), (number * 40, 0, 0)) for number in range(count)]


def animated(count, kind):
    first, *others = frames(count)
    return saved(first, kind, save_all=True, append_images=others)


def patched(data, position, replacement):
    return data[:position] + replacement + data[position + len(replacement) :]


def jpeg_of_size(width, height):
    """Return a JPEG whose header states another size than its pixels have."""
    data = saved(kind="JPEG")
    start = data.index(b"\xff\xc0") + 5
    return patched(data, start, struct.pack(">HH", height, width))


def bmp_of_size(width, height):
    return patched(saved(kind="BMP"), 18, struct.pack("<ii", width, height))


def packed(kilobytes):
    """Return zlib data that inflates to so many KiB."""
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1024)) for _ in range(kilobytes)), packer.flush()])


def eps():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n%%EOF\n"


PALETTE = ORDINARY.quantize(8)
IDAT = chunk(b"IDAT", pixels(32, 24))
JPEG = saved(kind="JPEG")
IMAGES = [
    ("ok_rgb", LOAD, "RGB", PLAIN, ".png"),
    ("ok_grey", LOAD, "grey", png(form=GREY), ".png"),
    ("ok_one_bit", LOAD, "one bit", png(form=MODE_1), ".png"),
    ("ok_palette", LOAD, "a palette", saved(PALETTE), ".png"),
    ("ok_grey_alpha", LOAD, "grey with alpha", saved(ORDINARY.convert("LA")), ".png"),
    ("ok_cmyk", LOAD, "CMYK", saved(ORDINARY.convert("CMYK"), "JPEG"), ".jpg"),
    ("ok_webp", LOAD, "WebP", saved(kind="WEBP", lossless=True), ".webp"),
    ("ok_tiff", LOAD, "TIFF", saved(kind="TIFF"), ".tif"),
    ("ok_jpeg_as_png", LOAD, "a JPEG named .png, as downloads are", JPEG, ".png"),
    ("ok_webp_as_jpeg", LOAD, "a WebP named .jpg", saved(kind="WEBP"), ".jpg"),
    ("ok_gif", LOAD, "a GIF of one frame", saved(PALETTE, "GIF"), ".gif"),
    ("ok_turned", LOAD, "orientation 5", with_orientation(5), ".jpg"),
    ("ok_orientation_0", LOAD, "orientation 0, as some cameras write it", with_orientation(0), ".jpg"),
    ("ok_long", LOAD, "200 x 20", png(width=200, height=20), ".png"),
    ("orientation_9", WARN, "orientation 9", with_orientation(9), ".jpg"),
    ("orientation_65535", WARN, "orientation 65535", with_orientation(65535), ".jpg"),
    ("orientation_webp", WARN, "orientation 77 in a WebP", with_orientation(77, "WEBP"), ".webp"),
    ("orientation_png", WARN, "orientation 10 in a PNG", with_orientation(10, "PNG"), ".png"),
    ("animated_gif", WARN, "a GIF of 3 frames", animated(3, "GIF"), ".gif"),
    ("animated_png", WARN, "a PNG of 2 frames", animated(2, "PNG"), ".png"),
    ("animated_webp", WARN, "a WebP of 2 frames", animated(2, "WEBP"), ".webp"),
    ("tiny_2x2", WARN, "2 x 2", png(width=2, height=2), ".png"),
    ("tiny_7x7", WARN, "7 x 7", png(width=7, height=7, form=GREY), ".png"),
    ("thin", WARN, "1 x 300", png(width=1, height=300), ".png"),
    ("long", WARN, "500 x 10", png(width=500, height=10), ".png"),
    ("transparent", WARN, "RGBA of which nothing is seen", TRANSPARENT, ".png"),
    ("transparent_grey", WARN, "LA of which nothing is seen", saved(Image.new("LA", (32, 24), (90, 0))), ".png"),
    ("transparent_key", WARN, "one colour, which is the transparent one", png(chunk(b"tRNS", b"\0\x80" * 3)), ".png"),
    ("profile_garbage", WARN, "a garbled colour profile", saved(icc_profile=b"garbage" * 20), ".png"),
    ("profile_cut", WARN, "a colour profile of 4 bytes", saved(kind="JPEG", icc_profile=b"\0\0\2\x10"), ".jpg"),
    (
        "pixel_checksum",
        WARN,
        "a wrong checksum of the pixels",
        SIGNATURE + header(32, 24) + chunk(b"IDAT", pixels(32, 24), checksum=1) + END,
        ".png",
    ),
    ("claim_100k", REFUSE, "100,000 x 100,000", SIGNATURE + header(100_000, 100_000) + IDAT + END, ".png"),
    ("claim_thin", REFUSE, "2 ** 31 - 1 x 1", SIGNATURE + header(2**31 - 1, 1) + IDAT + END, ".png"),
    ("claim_no_width", REFUSE, "0 x 24", SIGNATURE + header(0, 24) + IDAT + END, ".png"),
    ("claim_no_height", REFUSE, "32 x 0", SIGNATURE + header(32, 0) + IDAT + END, ".png"),
    ("claim_jpeg", REFUSE, "a JPEG of 65,500 x 60,000", jpeg_of_size(65_500, 60_000), ".jpg"),
    ("claim_jpeg_20k", REFUSE, "20,000 x 15,000 in a JPEG of a few bytes", jpeg_of_size(20_000, 15_000), ".jpg"),
    ("claim_gif", REFUSE, "a GIF of 60,000 x 60,000", patched(saved(PALETTE, "GIF"), 6, b"\x60\xea" * 2), ".gif"),
    ("claim_bmp", REFUSE, "a BMP of 30,000 x 30,000", bmp_of_size(30_000, 30_000), ".bmp"),
    ("claim_bmp_negative", REFUSE, "a BMP of negative width", bmp_of_size(-32, 24), ".bmp"),
    ("bomb_bits", REFUSE, "12,000 x 12,000 of one bit", png(width=12_000, height=12_000, form=MODE_1), ".png"),
    ("bomb_grey", REFUSE, "10,000 x 9,500 in grey", png(width=10_000, height=9_500, form=GREY), ".png"),
    ("bomb_text", REFUSE, "a text that inflates to 64 MB", png(chunk(b"zTXt", b"a\0\0" + packed(65_536))), ".png"),
    (
        "bomb_unicode",
        REFUSE,
        "a text in iTXt that inflates to 64 MB",
        png(chunk(b"iTXt", b"a\0\1\0\0\0" + packed(65_536))),
        ".png",
    ),
    (
        "bomb_profile",
        REFUSE,
        "a profile that inflates to 64 MB",
        png(chunk(b"iCCP", b"a\0\0" + packed(65_536))),
        ".png",
    ),
    ("pixels_short", REFUSE, "half of the pixels", SIGNATURE + header(32, 48) + IDAT + END, ".png"),
    ("pixels_missing", REFUSE, "no pixels", SIGNATURE + header(32, 24) + END, ".png"),
    (
        "pixels_garbled",
        REFUSE,
        "pixels that are not zlib",
        SIGNATURE + header(32, 24) + chunk(b"IDAT", b"a" * 99) + END,
        ".png",
    ),
    ("header_checksum", REFUSE, "a wrong checksum of the header", patched(PLAIN, 29, b"\0\0\0\0"), ".png"),
    ("header_missing", REFUSE, "no header", SIGNATURE + IDAT + END, ".png"),
    ("depth_3", REFUSE, "3 bits a pixel", SIGNATURE + header(32, 24, (3, 0)) + IDAT + END, ".png"),
    (
        "length_lie",
        REFUSE,
        "a chunk of 2 ** 31 bytes",
        SIGNATURE + header(32, 24) + chunk(b"IDAT", b"a", length=2**31),
        ".png",
    ),
    ("signature", REFUSE, "the signature alone", SIGNATURE, ".png"),
    ("empty_jpeg", REFUSE, "nothing", b"", ".jpg"),
    ("text", REFUSE, "text named .png", b"not a picture", ".png"),
    ("html", REFUSE, "HTML named .webp", b"<html><body>404</body></html>", ".webp"),
    (
        "svg",
        REFUSE,
        "SVG named .jpg",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc"/></svg>',
        ".jpg",
    ),
    ("eps", REFUSE, "EPS named .jpg", eps(), ".jpg"),
    ("pdf", REFUSE, "PDF named .png", b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", ".png"),
    ("zip", REFUSE, "a zip named .png", b"PK\x05\x06" + bytes(18), ".png"),
    ("gzip", REFUSE, "a gzip named .jpg", b"\x1f\x8b\x08" + bytes(30), ".jpg"),
    ("pickle", REFUSE, "a pickle named .png", b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.", ".png"),
    ("tiff_as_jpeg", REFUSE, "TIFF named .jpg", saved(kind="TIFF"), ".jpg"),
    ("ico_as_png", REFUSE, "an icon named .png", saved(kind="ICO", sizes=[(16, 16)]), ".png"),
    ("ppm_as_png", REFUSE, "PPM named .png", saved(kind="PPM"), ".png"),
]

TEXT = "cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 64x64"
OTHER = TEXT.replace("Seed: 1", "Seed: 2")


def text_chunk(text=TEXT, key=b"parameters"):
    return chunk(b"tEXt", key + b"\0" + text.encode("latin-1"))


def unicode_chunk(data, key=b"parameters"):
    return chunk(b"iTXt", key + b"\0\0\0\0\0" + data)


def exif_picture(comment, kind="JPEG"):
    """Return a picture with a UserComment, of type UNDEFINED as the standard asks."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHLLL", 1, 0x8769, 4, 1, 26, 0)
    tiff += struct.pack(">HHHLLL", 1, 0x9286, 7, len(comment), 44, 0) + comment
    return saved(kind=kind, exif=b"Exif\0\0" + tiff)


SUFFIX_BY_MAGIC = {b"\x89": ".png", b"\xff": ".jpg", b"R": ".webp"}
PNG_INFOS = [
    ("ok_text", LOAD, "tEXt", png(text_chunk())),
    ("ok_unicode", LOAD, "iTXt", png(unicode_chunk(f"\u732b {TEXT}".encode()))),
    ("ok_compressed", LOAD, "zTXt", png(chunk(b"zTXt", b"parameters\0\0" + zlib.compress(TEXT.encode())))),
    ("ok_behind", LOAD, "tEXt behind the pixels", PLAIN[: -len(END)] + text_chunk() + END),
    ("ok_twice", LOAD, "the same text twice", png(text_chunk(), text_chunk())),
    ("ok_other_key", LOAD, "another text beside it", png(text_chunk(), text_chunk("a note", b"Comment"))),
    ("ok_exif_unicode", LOAD, "UserComment in UNICODE", exif_picture(b"UNICODE\0" + TEXT.encode("utf-16-be"))),
    ("ok_exif_ascii", LOAD, "UserComment in ASCII", exif_picture(b"ASCII\0\0\0" + TEXT.encode())),
    ("ok_exif_undefined", LOAD, "UserComment of no stated set", exif_picture(bytes(8) + TEXT.encode())),
    ("ok_exif_bare", LOAD, "UserComment without a set", exif_picture(TEXT.encode())),
    ("two_texts", WARN, "two texts that differ", png(text_chunk(), text_chunk(OTHER))),
    ("two_kinds", WARN, "tEXt and iTXt that differ", png(text_chunk(), unicode_chunk(OTHER.encode()))),
    ("three_texts", WARN, "three texts of which one differs", png(text_chunk(), text_chunk(), text_chunk(OTHER))),
    ("two_behind", WARN, "another text behind the pixels", png(text_chunk())[: -len(END)] + text_chunk(OTHER) + END),
    (
        "two_graphs",
        WARN,
        "two graphs of ComfyUI beside it",
        png(text_chunk(), *(text_chunk(text, b"prompt") for text in ("{}", "[]"))),
    ),
    ("key_300", WARN, "a name of 300 bytes", png(text_chunk(), text_chunk("x", b"k" * 300))),
    ("key_80", WARN, "a name of 80 bytes", png(text_chunk(), text_chunk("x", b"k" * 80))),
    ("key_empty", WARN, "an empty name", png(text_chunk(), text_chunk("x", b""))),
    (
        "texts_3000",
        WARN,
        "3,000 texts",
        png(text_chunk(), *(text_chunk("v", b"k%d" % number) for number in range(3000))),
    ),
    ("unicode_latin1", WARN, "iTXt in Latin-1", png(unicode_chunk(f"caf\u00e9 {TEXT}".encode("latin-1")))),
    ("unicode_utf16", WARN, "iTXt in UTF-16", png(unicode_chunk(TEXT.encode("utf-16")))),
    ("unicode_cut", WARN, "iTXt with half of a letter", png(unicode_chunk(f"{TEXT}, Model: \u732b".encode()[:-1]))),
    (
        "compressed_garbled",
        WARN,
        "zTXt that is not zlib, beside it",
        png(text_chunk(), chunk(b"zTXt", b"a\0\0garbled")),
    ),
    ("exif_name_foo", WARN, "UserComment in the set FOO", exif_picture(b"FOO\0\0\0\0\0" + TEXT.encode())),
    ("exif_name_utf8", WARN, "UserComment in the set UTF-8", exif_picture(b"UTF-8\0\0\0" + TEXT.encode())),
    ("exif_name_spaces", WARN, "UserComment in the set LATIN1", exif_picture(b"LATIN1  " + TEXT.encode())),
    (
        "exif_name_binary",
        WARN,
        "UserComment in a set of control bytes",
        exif_picture(b"\1\2\3\4\5\6\7\x08" + TEXT.encode()),
    ),
    (
        "exif_name_webp",
        WARN,
        "UserComment in the set BAR, in a WebP",
        exif_picture(b"BAR\0\0\0\0\0" + TEXT.encode(), "WEBP"),
    ),
    ("nothing", REFUSE, "no text", PLAIN),
    ("steps_0", REFUSE, "0 steps", png(text_chunk(TEXT.replace("20", "0")))),
    ("cfg_nan", REFUSE, "CFG scale NaN", png(text_chunk(TEXT.replace("scale: 7", "scale: nan")))),
    ("json_cut", REFUSE, "JSON cut short", png(text_chunk('{"sui_image_params": {"prompt": "a'))),
    ("json_deep", REFUSE, "JSON nested 20,000 deep", png(text_chunk('{"prompt":' * 20_000))),
    ("bomb", REFUSE, "a text that inflates to 64 MB", png(chunk(b"zTXt", b"parameters\0\0" + packed(65_536)))),
    ("header_checksum", REFUSE, "a wrong checksum of the header", patched(png(text_chunk()), 29, b"\0\0\0\0")),
    ("pixels_missing", REFUSE, "no pixels", SIGNATURE + header(32, 24) + text_chunk() + END),
]

CASES = [
    *(
        Case(name, "image", must, why, bytes_file(f"a red house, {name}", data, suffix))
        for name, must, why, data, suffix in IMAGES
    ),
    *(
        Case(name, "png_info", must, why, bytes_file(name, data, SUFFIX_BY_MAGIC[data[:1]]))
        for name, must, why, data in PNG_INFOS
    ),
]
