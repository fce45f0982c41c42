"""A checksum at the end of an exported file, which its runtime reads over.

An ONNX file gets one more entry of its metadata behind everything else, which protobuf takes for
part of the model; an ``.xml`` file gets a comment. Whoever changes such a file on purpose takes the
entry away: files without one are read, too.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from ..errors import ClipQError

KEY = 'mmclipq_sha256'
_SHA = rb'([0-9a-f]{64})'
_COMMENT = re.compile(rb'<!-- ' + KEY.encode() + rb' ' + _SHA + rb' -->\n\Z')


def _metadata_entry(value: bytes) -> bytes:
    """``ModelProto.metadata_props`` (field 14) of :data:`KEY` in protobuf's encoding."""
    key = KEY.encode()
    entry = b'\x0a' + bytes([len(key)]) + key + b'\x12' + bytes([len(value)]) + value
    return b'\x72' + bytes([len(entry)]) + entry


def _comment(value: bytes) -> bytes:
    return b'<!-- ' + KEY.encode() + b' ' + value + b' -->\n'


_ENTRY = re.compile(re.escape(_metadata_entry(b'0' * 64)).replace(b'0' * 64, _SHA) + rb'\Z')
_FORMS = {'.onnx': (_metadata_entry, _ENTRY), '.xml': (_comment, _COMMENT)}


def sealed(data: bytes, suffix: str) -> bytes:
    """``data`` of a file with that suffix, with its checksum behind it."""
    return data + _FORMS[suffix][0](hashlib.sha256(data).hexdigest().encode())


def check_seal(path: Path) -> None:
    """Return if a file with a checksum is the one that was written, or has none.

    Raises:
        ClipQError: if a byte of it is another one.
    """
    data = path.read_bytes()
    found = _FORMS[path.suffix][1].search(data, max(0, len(data) - 512))
    if found and hashlib.sha256(data[: found.start()]).hexdigest().encode() != found[1]:
        raise ClipQError(
            f'{path}: found another checksum than the one at its end, wanted the file as '
            'tools/export.py wrote it; export it again'
        )
