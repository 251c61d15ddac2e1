"""TFRecord files of tf.train.Example, read without TensorFlow.

A record is its length (uint64), a check of the length, its bytes, and a check of those, all little-endian; a check is a masked CRC-32C. The
length's is compared, which finds a file that is something else or broken; the other is not, for in Python it takes longer than all the
rest. An Example is a protobuf message: a map from names to lists of bytes, floats or integers (tensorflow/core/example)."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

LENGTH = struct.Struct("<QI")  # of a record, and its check
SIZES = {1: 8, 5: 4}  # bytes of a value of a protobuf wire type


def records(path) -> Iterator[bytes]:
    """The records of a file. ValueError names a file that is none, or ends within a record."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while head := file.read(LENGTH.size):
            length, check = LENGTH.unpack(head) if len(head) == LENGTH.size else (0, -1)
            if check != _masked(crc32c(head[:8])):
                raise ValueError(f"{path} is no TFRecord file after byte {file.tell() - len(head)}; a pointer of Git LFS is fetched "
                                 "by `git lfs pull`")  # fmt: skip
            if file.tell() + length + 4 > size:
                raise ValueError(f"{path} ends within a record; fetch it again")
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)


def examples(path: Path) -> Iterator[dict[str, list]]:
    """The features of each Example in a file, {} for a record that is none."""
    for record in records(path):
        try:
            yield example(record)
        except ValueError:
            yield {}


def example(record: bytes) -> dict[str, list]:
    """{name: its bytes, floats or integers} of a serialised Example. ValueError for anything else."""
    try:
        entries = [dict(_fields(entry)) for features in _messages(record, 1) for entry in _messages(features, 1)]
        return {entry[1].decode(): _values(entry.get(2, b"")) for entry in entries}
    except (AttributeError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"the record is no tf.train.Example: {error!r}") from error


def _messages(message: bytes, number: int) -> list[bytes]:
    return [value for n, value in _fields(message) if n == number]


def _values(feature: bytes) -> list:
    """The list in a feature: of bytes (field 1), floats (2) or integers (3), those packed into one value or each by itself."""
    for kind, message in _fields(feature):
        values = _messages(message, 1)
        if kind == 2:
            packed = b"".join(values)
            return list(struct.unpack(f"<{len(packed) // 4}f", packed))
        if kind == 3:
            return [_signed(v) for value in values for v in (_varints(value) if isinstance(value, bytes) else [value])]
        return values
    return []


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a protobuf message, varints as integers and all others as bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        if tag & 7 == 0:
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if tag & 7 == 2 else (SIZES[tag & 7], at)
            if at + size > len(message):
                raise ValueError("a field ends after its message")
            value = message[at : at + size]
            at += size
        yield tag >> 3, value


def _varints(packed: bytes) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer that begins at a byte, seven bits a byte, and where it ends."""
    value = 0
    for i, byte in enumerate(message[at : at + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("an integer does not end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def crc32c(data: bytes) -> int:
    """Castagnoli's CRC-32 (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
