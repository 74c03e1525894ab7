"""Unpack a zip of pictures and captions into a folder: strictly, and no more than its directory states.

Every fault is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath

from velatura.files import has_drive

END_SIGNATURE, END_COUNT = b"PK\x05\x06", struct.Struct("<10xH")  # the number of members, behind the signature
END_WINDOW = 2**16 + 22  # bytes at the end of a zip that may hold its comment and its last record
ZIP64_COUNT_MARK = 0xFFFF
ENCRYPTED_FLAG = 0x1
LOCAL_HEADER_BYTES = 30
LOCAL_HEADER_START = struct.Struct("<4s3H")  # signature, version, flags, method
MAX_FILES = 50_000
MAX_BYTES = 2**36  # of all files, unpacked
MAX_GROWTH, FREE_BYTES = 100, 2**24  # how much a member or all of them may grow, unless it stays small
COPIED_BYTES = 2**20
HIDDEN_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"|?*]')  # in names of Windows; a colon in other places is a drive
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass
class UnpackedZip:
    """What became of the members of a zip.

    Attributes:
        files: Paths below the folder.
        renamed: Names that no system takes, which were changed.
        colliding: Members left out because their name differs from another in upper and lower case only.
        hidden: Members left out that systems hide.
        ignored: Members left out that are of no wanted kind.
    """

    files: list[Path] = field(default_factory=list[Path])
    renamed: list[str] = field(default_factory=list[str])
    colliding: list[str] = field(default_factory=list[str])
    hidden: list[str] = field(default_factory=list[str])
    ignored: list[str] = field(default_factory=list[str])


def unpack_zip(
    path: Path, folder: Path, is_wanted: Callable[[str], bool], has_meaning: Callable[[str], bool]
) -> UnpackedZip:
    """Unpack the wanted members of a zip. Folders that contain all of them are left out, unless their name counts.

    Args:
        path: The zip.
        folder: An empty folder.
        is_wanted: Says of a file's name whether it is unpacked.
        has_meaning: Says of a folder's name whether the folder is kept, with all that it contains.

    Raises:
        ValueError: The zip is damaged, could do harm, or would grow too much.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_count(path, len(archive.infolist()))
            names = {member: _safe_path(member) for member in members}
            _check_members(members, names)
            for member in members:
                _check_local_header(path, member)
            return _unpack_all(archive, names, folder, is_wanted, has_meaning)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"is a damaged zip ({' '.join(str(error).split())[:100]})") from None


def _check_count(path: Path, found: int) -> None:
    """Refuse a zip whose last record states another number of members than its directory lists."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - END_WINDOW))
        tail = file.read()
    position = tail.rfind(END_SIGNATURE)
    (stated,) = END_COUNT.unpack_from(tail, position)
    if stated not in {found, ZIP64_COUNT_MARK}:
        raise ValueError(f"states {stated:,} members and lists {found:,}")
    if found > MAX_FILES:
        raise ValueError(f"holds {found:,} files, and {MAX_FILES:,} at most are unpacked")


def _safe_path(member: zipfile.ZipInfo) -> PurePosixPath:
    """Return the path of a member, and refuse one that leaves the folder, and links."""
    name = member.orig_filename.replace("\\", "/")
    path = PurePosixPath(name)
    if name.startswith("/") or has_drive(name) or ".." in path.parts or not path.parts:
        raise ValueError(f"has a member with a path outside its folder, {name[-40:]!r}")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"has a symbolic link, {name[-40:]!r}")
    return path


def _check_members(members: Sequence[zipfile.ZipInfo], names: dict[zipfile.ZipInfo, PurePosixPath]) -> None:
    """Refuse members that are encrypted, compressed unusually, twice there, overlapping, or too large."""
    if len(set(names.values())) < len(names):
        raise ValueError("has two members of the same name")
    for member in members:
        name = str(names[member])[-40:]
        if member.flag_bits & ENCRYPTED_FLAG:
            raise ValueError(f"has an encrypted member {name!r}")
        if member.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError(f"has a member {name!r} in the unknown compression {member.compress_type}")
        if member.file_size > max(FREE_BYTES, MAX_GROWTH * member.compress_size):
            raise ValueError(
                f"has a member {name!r} of {member.compress_size:,} bytes that grows to {member.file_size:,}"
            )
    packed, grown = sum(member.compress_size for member in members), sum(member.file_size for member in members)
    if grown > max(FREE_BYTES, MAX_GROWTH * packed):
        raise ValueError(f"has members of {packed:,} bytes together that grow to {grown:,}")
    if grown > MAX_BYTES:
        raise ValueError(f"grows to more than {MAX_BYTES >> 30} GiB")
    for member, following in pairwise(sorted(members, key=lambda member: member.header_offset)):
        if member.header_offset + LOCAL_HEADER_BYTES + member.compress_size > following.header_offset:
            raise ValueError("has members that overlap")


def _check_local_header(path: Path, member: zipfile.ZipInfo) -> None:
    """Refuse a member whose own header contradicts the directory; zipfile compares the names."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        _, _, flags, method = LOCAL_HEADER_START.unpack(file.read(LOCAL_HEADER_START.size))
    if (flags & ENCRYPTED_FLAG, method) != (member.flag_bits & ENCRYPTED_FLAG, member.compress_type):
        raise ValueError(f"has two contradicting headers of its member {member.filename[-40:]!r}")


def _unpack_all(
    archive: zipfile.ZipFile,
    names: dict[zipfile.ZipInfo, PurePosixPath],
    folder: Path,
    is_wanted: Callable[[str], bool],
    has_meaning: Callable[[str], bool],
) -> UnpackedZip:
    result, taken = UnpackedZip(), set[str]()
    wanted: dict[zipfile.ZipInfo, PurePosixPath] = {}
    for member, path in names.items():
        if any(part.startswith(".") or part.lower() in HIDDEN_NAMES for part in path.parts):
            result.hidden.append(str(path))
        elif is_wanted(path.name):
            wanted[member] = path
        else:
            result.ignored.append(str(path))
    depth = _common_depth(wanted.values(), has_meaning)
    for member, path in wanted.items():
        safe = PurePosixPath(*map(_safe_name, path.parts[depth:]))
        if safe.parts != path.parts[depth:]:
            result.renamed.append(str(path))
        if str(safe).casefold() in taken:
            result.colliding.append(str(path))
            continue
        taken.add(str(safe).casefold())
        result.files.append(folder / safe)
        _unpack_member(archive, member, folder / safe)
    return result


def _common_depth(paths: Iterable[PurePosixPath], has_meaning: Callable[[str], bool]) -> int:
    """Return the number of folders that all files are in, above the first whose name counts."""
    folders = [path.parts[:-1] for path in paths]
    depth = 0
    while folders and all(len(parts) > depth and parts[depth] == folders[0][depth] for parts in folders):
        if has_meaning(folders[0][depth]):
            break
        depth += 1
    return depth


def _safe_name(part: str) -> str:
    """Return a name that every system takes."""
    name = FORBIDDEN.sub("_", part).rstrip(" .") or "_"
    return f"_{name}" if RESERVED.fullmatch(name) else name


def _unpack_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Write a member, whose checksum is verified, and stop where it is longer than it states."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with archive.open(member) as source, path.open("wb") as target:
        while part := source.read(COPIED_BYTES):
            count += len(part)
            if count > member.file_size:
                raise ValueError(f"has a member {member.filename[-40:]!r} that is longer than it states")
            target.write(part)
    if count != member.file_size:
        raise ValueError(f"has a member {member.filename[-40:]!r} that is shorter than it states")
