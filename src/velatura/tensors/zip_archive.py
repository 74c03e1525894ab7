"""A strict reader of torch's zip files. Central directory and member headers must agree, or the file is refused.

Member names are unique and below one root folder; members are not compressed, encrypted or overlapping; checksums are
verified. Every fault is a ValueError whose message continues "FILE ...".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from mmap import mmap

from velatura.files import has_drive
from velatura.tensors.lazy import copy_bytes

END_RECORD = struct.Struct("<4s4H2LH")
ZIP64_END_RECORD = struct.Struct("<4sQ2H2L4Q")
ZIP64_LOCATOR = struct.Struct("<4sLQL")
CENTRAL_HEADER = struct.Struct("<4s4B4HL2L5H2L")
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
ZIP64_SIZE_MARK = 0xFFFFFFFF  # means that a size or an offset is in the zip64 extra field
ZIP64_COUNT_MARK = 0xFFFF
ZIP64_EXTRA_ID = 1
PICKLE_NAME, STORAGE_PREFIX = "data.pkl", "data/"
MAX_SIZES_BYTES = 24  # that stand after the data
USUAL_GAP = 128  # bytes, of which 64 align the next member; reading every header for it would be slow on hard disks
SIZES_FOLLOW_FLAG = 0x8  # sizes and checksum stand after the data, and are 0 in the member's header
ALLOWED_FLAGS = 0x800 | SIZES_FOLLOW_FLAG  # 0x800: names in UTF-8; not encryption or patches


@dataclass(frozen=True)
class ZipMember:
    """A member as the central directory describes it. The offset is that of its header."""

    path: str
    flags: int
    checksum: int
    size: int
    header_offset: int


class ZipArchive:
    """A torch file's zip: its members below the folder of the pickle, by their names there.

    Attributes:
        unchecked: Names of the members without a checksum, which torch can leave out.
        strays: Paths of members outside that folder, which nothing reads.
    """

    def __init__(self, data: mmap) -> None:
        self._data = data
        members = list(_read_central_directory(data))
        root = _find_root(members)
        self._members = {member.path.removeprefix(root): member for member in members if member.path.startswith(root)}
        self.strays = tuple(member.path for member in members if not member.path.startswith(root))
        if len({member.path for member in members}) < len(members):
            raise ValueError("has two members of the same name")
        _check_places(data, members)
        self._has_checksums = any(member.checksum for member in members)
        self.unchecked = tuple(
            name
            for name, member in self._members.items()
            if member.size and not member.checksum and self._may_lack_checksum(name)
        )

    @property
    def names(self) -> frozenset[str]:
        """Return the members' names below the root folder."""
        return frozenset(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """Return the bytes of a member."""
        return self._member(name).size

    def read(self, name: str) -> bytearray:
        """Return a member's content, after its checksum is verified if it has one.

        Args:
            name: Name below the root folder.
        """
        member = self._member(name)
        start = self._start(member)
        content = copy_bytes(self._data, start, start + member.size)
        if len(content) < member.size:
            raise ValueError("ends in the middle of a member")
        is_unchecked = not member.checksum and self._may_lack_checksum(name)
        if not is_unchecked and zlib.crc32(content) != member.checksum:
            raise ValueError(f"is damaged: the checksum of {name} is wrong")
        return content

    def _may_lack_checksum(self, name: str) -> bool:
        """Return True for a storage, or for any member of an archive without checksums; a 0 elsewhere is wrong."""
        return not self._has_checksums or name.startswith(STORAGE_PREFIX)

    def _member(self, name: str) -> ZipMember:
        if name not in self._members:
            raise ValueError(f"does not contain the member {name[:40]!r}")
        return self._members[name]

    def _start(self, member: ZipMember) -> int:
        """Return the offset of a member's data, after its header was compared with the central directory."""
        _, _, flags, method, _, _, checksum, compressed_size, size, path_length, extra_length = _unpack_record(
            LOCAL_HEADER, self._data, member.header_offset, b"PK\x03\x04"
        )
        start = member.header_offset + LOCAL_HEADER.size
        path = self._data[start : start + path_length]
        unknown = {0} if flags & SIZES_FOLLOW_FLAG else set[int]()
        has_same_checksum = checksum in {member.checksum, *unknown}
        has_same_sizes = {compressed_size, size} <= {member.size, ZIP64_SIZE_MARK, *unknown}
        has_same_kind = path == member.path.encode() and flags == member.flags and method == 0
        if not (has_same_checksum and has_same_sizes and has_same_kind):
            raise ValueError(f"has two contradicting headers of its member {member.path[-40:]!r}")
        return start + path_length + extra_length


def _find_root(members: list[ZipMember]) -> str:
    """Return the folder of the pickle with "/" at its end, and refuse paths that no program writes beside it."""
    for member in members:
        parts = member.path.split("/")
        is_windows_path = "\\" in member.path or has_drive(member.path)
        if is_windows_path or ".." in parts or "." in parts or "" in parts[:-1]:
            raise ValueError(f"has a member with a path outside its folder, {member.path[-40:]!r}")
    roots = {member.path.removesuffix(PICKLE_NAME) for member in members if member.path.endswith("/" + PICKLE_NAME)}
    if len(roots) != 1 or next(iter(roots)).count("/") != 1:
        raise ValueError("has members that are not in one folder")
    return roots.pop()


def _read_central_directory(data: mmap) -> list[ZipMember]:
    """Return the members that the central directory lists."""
    count, size, offset = _locate_central_directory(data)
    members: list[ZipMember] = []
    position = offset
    for _ in range(count):
        member, position = _read_central_header(data, position)
        members.append(member)
    if position != offset + size:
        raise ValueError("has a central directory whose length is wrong")
    return members


def _locate_central_directory(data: mmap) -> tuple[int, int, int]:
    """Return the number of members, and the size and offset of the central directory, from the end of the file."""
    position = len(data) - END_RECORD.size
    _, disk, directory_disk, count_on_disk, count, size, offset, comment = _unpack_record(
        END_RECORD, data, position, b"PK\x05\x06"
    )
    if disk or directory_disk or count_on_disk != count or comment:
        raise ValueError("is a zip with a comment or in several parts, which torch does not write")
    locator = position - ZIP64_LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        *_, position, _ = _unpack_record(ZIP64_LOCATOR, data, locator, b"PK\x06\x07")
        if position + ZIP64_END_RECORD.size != locator:
            raise ValueError("has bytes between the records of its central directory")
        large = _unpack_record(ZIP64_END_RECORD, data, position, b"PK\x06\x06")[6:]
        small = (count_on_disk, count, size, offset)
        agreements = (
            value in {large_value, ZIP64_COUNT_MARK, ZIP64_SIZE_MARK}
            for value, large_value in zip(small, large, strict=True)
        )
        if not all(agreements):
            raise ValueError("has two contradicting records of its central directory")
        _, count, size, offset = large
    if offset + size != position:
        raise ValueError("has bytes between its central directory and its end")
    return count, size, offset


def _read_central_header(data: mmap, position: int) -> tuple[ZipMember, int]:
    fields = _unpack_record(CENTRAL_HEADER, data, position, b"PK\x01\x02")
    (
        flags,
        method,
        _,
        _,
        checksum,
        compressed_size,
        size,
        path_length,
        extra_length,
        comment_length,
        disk,
        _,
        _,
        offset,
    ) = fields[5:]
    start = position + CENTRAL_HEADER.size
    end = start + path_length + extra_length + comment_length
    path = data[start : start + path_length].decode()
    if method != 0 or flags & ~ALLOWED_FLAGS:
        raise ValueError(f"has a compressed or encrypted member {path[-40:]!r}, which torch does not write")
    if comment_length or disk:
        raise ValueError("is a zip with a comment or in several parts, which torch does not write")
    extra = data[start + path_length : start + path_length + extra_length]
    large = iter(_zip64_values(extra))
    size, compressed_size, offset = (
        next(large, value) if value == ZIP64_SIZE_MARK else value for value in (size, compressed_size, offset)
    )
    if compressed_size != size:
        raise ValueError(f"gives two different sizes for its member {path[-40:]!r}")
    return ZipMember(path, flags, checksum, size, offset), end


def _zip64_values(extra: bytes) -> list[int]:
    """Return the sizes and the offset that are too large for their 32-bit fields."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == ZIP64_EXTRA_ID:
            return list(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
        extra = extra[4 + length :]
    return []


def _check_places(data: mmap, members: list[ZipMember]) -> None:
    """Refuse members that overlap, and bytes between them that may be another archive."""
    ordered = sorted(members, key=lambda member: member.header_offset)
    starts = [member.header_offset for member in ordered[1:]]
    if ordered and ordered[0].header_offset != 0:
        raise ValueError("has bytes before its first member")
    for member, next_start in zip(ordered, [*starts, _locate_central_directory(data)[2]], strict=True):
        gap = next_start - (member.header_offset + LOCAL_HEADER.size + len(member.path.encode()) + member.size)
        if gap < 0:
            raise ValueError("has members that overlap")
        if gap > USUAL_GAP and gap > _extra_length(data, member) + MAX_SIZES_BYTES:
            raise ValueError(f"has bytes behind its member {member.path[-40:]!r}, which torch does not write")


def _extra_length(data: mmap, member: ZipMember) -> int:
    """Return the bytes between the name of a member and its content, by which torch aligns it."""
    return _unpack_record(LOCAL_HEADER, data, member.header_offset, b"PK\x03\x04")[-1]


def _unpack_record(layout: struct.Struct, data: mmap, position: int, signature: bytes) -> tuple[int, ...]:
    """Unpack a record of the zip after checking its signature."""
    if position < 0 or data[position : position + 4] != signature or position + layout.size > len(data):
        raise ValueError("is cut short or damaged: a record of its zip is missing")
    return layout.unpack(data[position : position + layout.size])
