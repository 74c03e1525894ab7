"""The zip around a torch file, read strictly: what its list says and what lies in it are the same, or it is refused.

Names are unique and below one root; nothing is packed, encrypted or overlapping; checksums are verified. All that is
wrong is a ValueError whose message goes on from "this file ...".
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from mmap import mmap

from velatura.tensors.lazy import copied

END = struct.Struct("<4s4H2LH")
END_64 = struct.Struct("<4sQ2H2L4Q")
LOCATOR_64 = struct.Struct("<4sLQL")
LISTED = struct.Struct("<4s4B4HL2L5H2L")
LOCAL = struct.Struct("<4s5H3L2H")
FULL = 0xFFFFFFFF  # a size or place that stands in the field for large ones
FULL_COUNT = 0xFFFF
LARGE = 1  # the number of that field
ALLOWED_FLAGS = 0x808  # sizes after the data, names in UTF-8; not encryption or patches


@dataclass(frozen=True)
class Member:
    """Where a member lies, from its own header on, and what the list of the archive says of it."""

    path: str
    flags: int
    checksum: int
    size: int
    place: int


class Archive:
    """A torch file's zip; has_checksums says whether any member has one, which torch can leave out."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        members = list(_listed(data))
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
        found = copied(self._data, start, start + member.size)
        if len(found) < member.size:
            raise ValueError("ends in the middle of a member")
        if self.has_checksums and zlib.crc32(found) != member.checksum:
            raise ValueError(f"is damaged: {name} has another checksum than is listed")
        return found

    def _member(self, name: str) -> Member:
        if name not in self._members:
            raise ValueError(f"lacks its member {name[:40]!r}")
        return self._members[name]

    def _start(self, member: Member) -> int:
        """Where a member's data starts, behind a header that must say what the list says."""
        _, _, flags, method, _, _, checksum, packed, size, path_length, extra_length = _unpacked(
            LOCAL, self._data, member.place, b"PK\x03\x04"
        )
        start = member.place + LOCAL.size
        path = self._data[start : start + path_length]
        unknown = {0} if flags & 0x8 else set[int]()  # what is not known at first stands behind the data
        agrees = checksum in {member.checksum, *unknown} and {packed, size} <= {member.size, FULL, *unknown}
        if path != member.path.encode() or flags != member.flags or method != 0 or not agrees:
            raise ValueError(f"says two things of its member {member.path[-40:]!r}")
        return start + path_length + extra_length


def _listed(data: mmap) -> list[Member]:
    """The members as the list at the end of the archive names them."""
    count, size, place = _list_place(data)
    members: list[Member] = []
    at = place
    for _ in range(count):
        member, at = _member_at(data, at)
        members.append(member)
    if at != place + size:
        raise ValueError("has a list of members of another length than it says")
    return members


def _list_place(data: mmap) -> tuple[int, int, int]:
    """How many members are listed, and where: at the very end, nothing after it."""
    at = len(data) - END.size
    _, disk, list_disk, here, count, size, place, comment = _unpacked(END, data, at, b"PK\x05\x06")
    if disk or list_disk or here != count or comment:
        raise ValueError("is a zip with a comment or in several parts, which torch never writes")
    locator = at - LOCATOR_64.size
    if locator >= 0 and data[locator : locator + 4] == b"PK\x06\x07":
        *_, at, _ = _unpacked(LOCATOR_64, data, locator, b"PK\x06\x07")
        large = _unpacked(END_64, data, at, b"PK\x06\x06")[6:]
        small = (here, count, size, place)
        if not all(each in {same, FULL_COUNT, FULL} for each, same in zip(small, large, strict=True)):
            raise ValueError("says two things of where its members are listed")
        _, count, size, place = large
    if place + size != at:
        raise ValueError("has something between its list of members and its end")
    return count, size, place


def _member_at(data: mmap, at: int) -> tuple[Member, int]:
    fields = _unpacked(LISTED, data, at, b"PK\x01\x02")
    flags, method, _, _, checksum, packed, size, path_length, extra_length, comment_length, disk, _, _, place = fields[
        5:
    ]
    start = at + LISTED.size
    end = start + path_length + extra_length + comment_length
    path = data[start : start + path_length].decode()
    if method != 0 or flags & ~ALLOWED_FLAGS:
        raise ValueError(f"is packed or encrypted at {path[-40:]!r}, which torch never does")
    if comment_length or disk:
        raise ValueError("is a zip with a comment or in several parts, which torch never writes")
    extra = data[start + path_length : start + path_length + extra_length]
    large = iter(_large(extra))
    size, packed, place = (next(large, each) if each == FULL else each for each in (size, packed, place))
    if packed != size:
        raise ValueError(f"says two things of its member {path[-40:]!r}")
    return Member(path, flags, checksum, size, place), end


def _large(extra: bytes) -> list[int]:
    """The sizes and place that are too large for their own fields."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<2H", extra[:4])
        if kind == LARGE:
            return list(struct.unpack(f"<{length // 8}Q", extra[4 : 4 + length // 8 * 8]))
        extra = extra[4 + length :]
    return []


def _refuse_overlaps(members: list[Member]) -> None:
    end = 0
    for member in sorted(members, key=lambda each: each.place):
        if member.place < end:
            raise ValueError("has members that overlap")
        end = member.place + LOCAL.size + len(member.path.encode()) + member.size


def _unpacked(layout: struct.Struct, data: mmap, at: int, signature: bytes) -> tuple[int, ...]:
    """A record of the zip, its signature first."""
    if at < 0 or data[at : at + 4] != signature or at + layout.size > len(data):
        raise ValueError("is cut short or damaged: a part of the zip around it is missing")
    return layout.unpack(data[at : at + layout.size])
