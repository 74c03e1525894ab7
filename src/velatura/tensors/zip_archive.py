"""The zip around a torch file, read strictly: what its list says and what lies in it are the same, or it is refused.

Names are unique and below one root; nothing is packed, encrypted or overlapping; checksums are verified. All that is
wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from mmap import mmap

from velatura.tensors.lazy import copy_bytes

END_RECORD = struct.Struct("<4s4H2LH")
ZIP64_END_RECORD = struct.Struct("<4sQ2H2L4Q")
ZIP64_LOCATOR = struct.Struct("<4sLQL")
CENTRAL_HEADER = struct.Struct("<4s4B4HL2L5H2L")
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
ZIP64_SIZE_MARK = 0xFFFFFFFF  # a size or place that stands in the field for large ones
ZIP64_COUNT_MARK = 0xFFFF
ZIP64_EXTRA_ID = 1  # the number of that field
ALLOWED_FLAGS = 0x808  # sizes after the data, names in UTF-8; not encryption or patches


@dataclass(frozen=True)
class ZipMember:
    """Where a member lies, from its own header on, and what the list of the archive says of it."""

    path: str
    flags: int
    checksum: int
    size: int
    header_offset: int


class ZipArchive:
    """A torch file's zip; has_checksums says whether any member has one, which torch can leave out."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        members = list(_read_central_directory(data))
        roots = {member.path.partition("/")[0] for member in members}
        if len(roots) != 1 or roots & {"", ".", ".."}:
            raise ValueError("does not have its members in one folder")
        self._members = {member.path.partition("/")[2]: member for member in members}
        if len(self._members) < len(members):
            raise ValueError("names a member twice")
        _refuse_overlaps(members)
        self.has_checksums = any(member.checksum for member in members)

    @property
    def names(self) -> frozenset[str]:
        """The members' names below the root."""
        return frozenset(self._members)

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def size(self, name: str) -> int:
        """How long a member is."""
        return self._member(name).size

    def read(self, name: str) -> bytearray:
        """A member by its name below the root, its checksum verified if there are any."""
        member = self._member(name)
        start = self._start(member)
        content = copy_bytes(self._data, start, start + member.size)
        if len(content) < member.size:
            raise ValueError("ends in the middle of a member")
        if self.has_checksums and zlib.crc32(content) != member.checksum:
            raise ValueError(f"is damaged: {name} has another checksum than is listed")
        return content

    def _member(self, name: str) -> ZipMember:
        if name not in self._members:
            raise ValueError(f"lacks its member {name[:40]!r}")
        return self._members[name]

    def _start(self, member: ZipMember) -> int:
        """Where a member's data starts, behind a header that must say what the list says."""
        _, _, flags, method, _, _, checksum, compressed_size, size, path_length, extra_length = _unpack_record(
            LOCAL_HEADER, self._data, member.header_offset, b"PK\x03\x04"
        )
        start = member.header_offset + LOCAL_HEADER.size
        path = self._data[start : start + path_length]
        unknown = {0} if flags & 0x8 else set[int]()  # what is not known at first stands behind the data
        agrees = checksum in {member.checksum, *unknown} and {compressed_size, size} <= {
            member.size,
            ZIP64_SIZE_MARK,
            *unknown,
        }
        if path != member.path.encode() or flags != member.flags or method != 0 or not agrees:
            raise ValueError(f"says two things of its member {member.path[-40:]!r}")
        return start + path_length + extra_length


def _read_central_directory(data: mmap) -> list[ZipMember]:
    """The members as the list at the end of the archive names them."""
    count, size, offset = _locate_central_directory(data)
    members: list[ZipMember] = []
    position = offset
    for _ in range(count):
        member, position = _read_central_header(data, position)
        members.append(member)
    if position != offset + size:
        raise ValueError("has a list of members of another length than it says")
    return members


def _locate_central_directory(data: mmap) -> tuple[int, int, int]:
    """How many members are listed, and where: at the very end, nothing after it."""
    position = len(data) - END_RECORD.size
    _, disk, directory_disk, count_on_disk, count, size, offset, comment = _unpack_record(
        END_RECORD, data, position, b"PK\x05\x06"
    )
    if disk or directory_disk or count_on_disk != count or comment:
        raise ValueError("is a zip with a comment or in several parts, which torch never writes")
    locator = position - ZIP64_LOCATOR.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        *_, position, _ = _unpack_record(ZIP64_LOCATOR, data, locator, b"PK\x06\x07")
        large = _unpack_record(ZIP64_END_RECORD, data, position, b"PK\x06\x06")[6:]
        small = (count_on_disk, count, size, offset)
        if not all(
            value in {same, ZIP64_COUNT_MARK, ZIP64_SIZE_MARK} for value, same in zip(small, large, strict=True)
        ):
            raise ValueError("says two things of where its members are listed")
        _, count, size, offset = large
    if offset + size != position:
        raise ValueError("has something between its list of members and its end")
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
        raise ValueError(f"is packed or encrypted at {path[-40:]!r}, which torch never does")
    if comment_length or disk:
        raise ValueError("is a zip with a comment or in several parts, which torch never writes")
    extra = data[start + path_length : start + path_length + extra_length]
    large = iter(_zip64_values(extra))
    size, compressed_size, offset = (
        next(large, value) if value == ZIP64_SIZE_MARK else value for value in (size, compressed_size, offset)
    )
    if compressed_size != size:
        raise ValueError(f"says two things of its member {path[-40:]!r}")
    return ZipMember(path, flags, checksum, size, offset), end


def _zip64_values(extra: bytes) -> list[int]:
    """The sizes and place that are too large for their own fields."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == ZIP64_EXTRA_ID:
            return list(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
        extra = extra[4 + length :]
    return []


def _refuse_overlaps(members: list[ZipMember]) -> None:
    end = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            raise ValueError("has members that overlap")
        end = member.header_offset + LOCAL_HEADER.size + len(member.path.encode()) + member.size


def _unpack_record(layout: struct.Struct, data: mmap, position: int, signature: bytes) -> tuple[int, ...]:
    """A record of the zip, its signature first."""
    if position < 0 or data[position : position + 4] != signature or position + layout.size > len(data):
        raise ValueError("is cut short or damaged: a part of the zip around it is missing")
    return layout.unpack(data[position : position + layout.size])
