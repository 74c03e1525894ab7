"""Hostile zips of pictures and captions to learn from."""

import io
import struct
import warnings
import zipfile
import zlib

from tests.hostile.cases import LOAD, REFUSE, WARN, Case, bytes_file
from tests.hostile.container_cases import noise
from tests.hostile.image_cases import MODE_1, png

LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def picture_bytes():
    file = io.BytesIO()
    noise().save(file, "PNG")
    return file.getvalue()


PICTURE, CAPTION = picture_bytes(), b"a red house"
CUT = PICTURE[: len(PICTURE) // 2]
PAIR = (("house.png", PICTURE), ("house.txt", CAPTION))
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def member(name, compression=STORED, mode=0, flags=0):
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name
    info.compress_type, info.external_attr, info.flag_bits = compression, mode << 16, flags
    return info


def zipped(*files, compression=STORED):
    """Return a zip of (name or member, bytes) pairs."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a name twice
        for name, data in files:
            archive.writestr(name if isinstance(name, zipfile.ZipInfo) else member(name, compression), data)
    return file.getvalue()


def patched_at(mark, offset, value, data=None, *, last=False):
    data = bytearray(zipped(*PAIR) if data is None else data)
    start = (data.rindex(mark) if last else data.index(mark)) + offset
    data[start : start + len(value)] = value
    return bytes(data)


def many_names(count):
    """Return a zip whose directory lists a member under many names."""
    data = zipped(*PAIR)
    start, end = data.index(CENTRAL), data.index(END)
    header, name = data[start : start + 46], data[start + 46 : start + 46 + len("house.png")]
    others = b"".join(header + name.replace(b"house", b"%05d" % number) for number in range(count))
    directory = data[start:end] + others
    record = struct.pack("<4s4H2LH", END, 0, 0, count + 2, count + 2, len(directory), start, 0)
    return data[:start] + directory + record


def bomb():
    """Return a zip with a text that inflates to 64 MB and states it."""
    return zipped(*PAIR, (member("big.txt", DEFLATED), bytes(2**26)))


def liar():
    """Return a zip with a text that inflates to a megabyte, and states 100 bytes in both headers."""
    data = bytearray(zipped(*PAIR, (member("other.txt", DEFLATED), b"a" * 2**20)))
    for mark, offset in ((LOCAL, 22), (CENTRAL, 24)):
        start = data.rindex(mark) + offset
        data[start : start + 4] = struct.pack("<L", 100)
    return bytes(data)


LINK = 0o120777
ROWS = [
    ("ok", LOAD, "a picture and its text", zipped(*PAIR)),
    ("ok_deflated", LOAD, "deflated", zipped(*PAIR, compression=DEFLATED)),
    ("ok_folder", LOAD, "in a folder", zipped(("set/", b""), *((f"set/{name}", data) for name, data in PAIR))),
    ("ok_folders", LOAD, "in two folders", zipped(*((f"data/set/{name}", data) for name, data in PAIR))),
    (
        "ok_repeats",
        LOAD,
        "in a folder with a number",
        zipped(*((f"photos/10_house/{name}", data) for name, data in PAIR), ("photos/2_cat/a cat.png", png())),
    ),
    (
        "ok_repeats_alone",
        LOAD,
        "in one folder with a number",
        zipped(*((f"10_house/{name}", data) for name, data in PAIR)),
    ),
    ("only_class", REFUSE, "class pictures only", zipped(*((f"reg/10_house/{name}", data) for name, data in PAIR))),
    ("ok_backslashes", LOAD, "backslashes between folders", zipped(*((f"set\\{name}", data) for name, data in PAIR))),
    (
        "ok_list",
        LOAD,
        "a list of captions",
        zipped(PAIR[0], ("metadata.csv", b"file_name,text\nhouse.png,a red house\n")),
    ),
    ("ok_name", LOAD, "a name for a caption", zipped(("a red house.png", PICTURE))),
    ("ok_comment", LOAD, "a comment", zipped(*PAIR)[:-2] + b"\5\0hello"),
    ("ok_japanese", LOAD, "a Japanese name", zipped(("\u5bb6.png", PICTURE), ("\u5bb6.txt", CAPTION))),
    ("case", WARN, "house.txt and HOUSE.TXT", zipped(*PAIR, ("HOUSE.TXT", b"other"))),
    ("case_picture", WARN, "two pictures in other letters", zipped(*PAIR, ("House.png", png()))),
    ("text_alone", WARN, "a text without a picture", zipped(*PAIR, ("cat.txt", b"a cat"))),
    ("picture_alone", WARN, "a picture without a text", zipped(*PAIR, ("b.png", png()))),
    ("zip_inside", WARN, "a zip inside", zipped(*PAIR, ("more.zip", zipped(*PAIR)))),
    ("pickle_inside", WARN, "a pickle inside", zipped(*PAIR, ("model.pt", b"\x80\x02cos\nsystem\n."))),
    ("program_inside", WARN, "a script inside", zipped(*PAIR, ("setup.py", b"raise SystemExit"))),
    ("hidden", WARN, "files of macOS", zipped(*PAIR, ("__MACOSX/._house.png", b"\0"), (".DS_Store", b"\0"))),
    ("hidden_windows", WARN, "a file of Windows", zipped(*PAIR, ("Thumbs.db", b"\0"))),
    ("name_newline", WARN, "a line break in a name", zipped(*PAIR, ("a\ncat.png", png()))),
    ("name_escape", WARN, "a terminal code in a name", zipped(*PAIR, ("a cat\x1b[31m.png", png()))),
    ("name_colon", WARN, "a colon in a name", zipped(*PAIR, ("a cat: red.png", png()))),
    ("name_con", WARN, "con.png", zipped(*PAIR, ("con.png", png()))),
    ("name_lpt", WARN, "lpt1.png", zipped(*PAIR, ("lpt1.png", png()))),
    ("one_cut", WARN, "a picture that is cut short", zipped(*PAIR, ("a cat.png", CUT))),
    ("one_text", WARN, "a text named .png", zipped(*PAIR, ("a cat.png", b"not a picture"))),
    (
        "one_bomb",
        WARN,
        "a picture that is a bomb",
        zipped(*PAIR, ("a cat.png", png(width=12_000, height=12_000, form=MODE_1))),
    ),
    ("caption_latin1", WARN, "a text in Latin-1", zipped(PAIR[0], ("house.txt", b"caf\xe9"))),
    ("caption_empty", WARN, "an empty text", zipped(PAIR[0], ("house.txt", b""))),
    ("slip", REFUSE, "../ in a name", zipped(*PAIR, ("../cat.png", PICTURE))),
    ("slip_inside", REFUSE, "set/../../ in a name", zipped(*PAIR, ("set/../../cat.png", PICTURE))),
    ("slip_end", REFUSE, ".. for a name", zipped(*PAIR, ("set/..", b""))),
    ("slip_backslash", REFUSE, "..\\ in a name", zipped(*PAIR, ("..\\cat.png", PICTURE))),
    ("slip_ignored", REFUSE, "../ in the name of a file that is not wanted", zipped(*PAIR, ("../x.pt", b""))),
    ("absolute", REFUSE, "an absolute name", zipped(*PAIR, ("/tmp/cat.png", PICTURE))),
    ("drive", REFUSE, "a name on a drive", zipped(*PAIR, ("C:\\cat.png", PICTURE))),
    ("drive_relative", REFUSE, "a name relative to a drive", zipped(*PAIR, ("C:cat.png", PICTURE))),
    ("unc", REFUSE, "a name on a server", zipped(*PAIR, ("\\\\server\\cat.png", PICTURE))),
    ("link", REFUSE, "a symbolic link", zipped(*PAIR, (member("cat.png", mode=LINK), b"/etc/passwd"))),
    (
        "link_folder",
        REFUSE,
        "a link to a folder, and a file in it",
        zipped(*PAIR, (member("set", mode=LINK), b"/tmp"), ("set/cat.png", PICTURE)),
    ),
    ("twice", REFUSE, "a text twice", zipped(*PAIR, ("house.txt", b"other"))),
    ("twice_slashes", REFUSE, "a text twice, once with ./", zipped(*PAIR, ("./house.txt", b"other"))),
    ("encrypted", REFUSE, "encrypted", patched_at(CENTRAL, 8, b"\1\0")),
    ("encrypted_local", REFUSE, "encrypted by its own header", patched_at(LOCAL, 6, b"\1\0")),
    ("method_12", REFUSE, "bzip2", patched_at(CENTRAL, 10, b"\x0c\0")),
    ("method_99", REFUSE, "compression 99", patched_at(CENTRAL, 10, b"\x63\0")),
    ("method_local", REFUSE, "another compression by its own header", patched_at(LOCAL, 8, b"\x08\0")),
    ("name_local", REFUSE, "another name by its own header", patched_at(LOCAL, 30, b"mouse.png")),
    ("checksum", REFUSE, "a wrong checksum", patched_at(CENTRAL, 16, b"\1\2\3\4")),
    ("checksum_text", REFUSE, "a wrong checksum of a text", patched_at(CENTRAL, 16, b"\1\2\3\4", last=True)),
    ("flipped", REFUSE, "a flipped bit in a text", patched_at(CAPTION, 0, b"A")),
    (
        "deflate_garbled",
        REFUSE,
        "garbled data",
        patched_at(LOCAL, 60, b"\xff" * 20, zipped(*PAIR, compression=DEFLATED)),
    ),
    ("count_more", REFUSE, "50,000 members by its end", patched_at(END, 8, b"\x50\xc3\x50\xc3")),
    ("count_less", REFUSE, "one member by its end", patched_at(END, 8, b"\1\0\1\0")),
    ("directory_far", REFUSE, "a directory past the end", patched_at(END, 16, b"\xff\xff\xff\x7f")),
    ("names_500", REFUSE, "a picture under 500 names", many_names(500)),
    ("bomb", REFUSE, "a text that inflates to 64 MB", bomb()),
    (
        "bomb_sum",
        REFUSE,
        "three texts that inflate to 12 MB each",
        zipped(*PAIR, *((member(f"{number}.txt", DEFLATED), bytes(12 * 2**20)) for number in range(3))),
    ),
    ("liar", REFUSE, "a text that is longer than it states", liar()),
    ("no_pictures", REFUSE, "texts only", zipped(PAIR[1])),
    ("nothing", REFUSE, "an empty zip", zipped()),
    ("all_cut", REFUSE, "all pictures cut short", zipped(("a.png", CUT), ("b.png", CUT[:50]))),
    ("all_hidden", REFUSE, "hidden pictures only", zipped((".a.png", PICTURE))),
    ("not_zip", REFUSE, "text named .zip", b"not a zip"),
    ("empty", REFUSE, "nothing", b""),
    ("rar", REFUSE, "a rar named .zip", b"Rar!\x1a\x07\x01\0" + bytes(40)),
    ("gzip", REFUSE, "a gzip named .zip", zlib.compress(bytes(40), wbits=31)),
    ("caption_picture", REFUSE, "a picture for a text", zipped(PAIR[0], ("house.txt", PICTURE))),
    *(
        (f"cut_{eighths}8", REFUSE, f"{eighths}/8 of it", zipped(*PAIR)[: len(zipped(*PAIR)) * eighths // 8])
        for eighths in range(1, 8)
    ),
]
CASES = [
    Case(f"ds_{name}", "dataset_zip", must, why, bytes_file(f"ds_{name}", data, ".zip"))
    for name, must, why, data in ROWS
]
