"""A checksum behind an exported file: every altered byte is found, and runtimes read over it."""

import hashlib
import random

import pytest

from mmclipq.errors import ClipQError
from mmclipq.exporters.seal import KEY, check_seal, sealed


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_every_altered_byte_is_found(tmp_path, suffix):
    data = random.Random(0).randbytes(300)
    path = tmp_path / f'a{suffix}'
    whole = sealed(data, suffix)
    assert whole.startswith(data)
    path.write_bytes(whole)
    check_seal(path)
    place = whole.index(hashlib.sha256(data).hexdigest().encode())
    for index in [*range(len(data)), *range(place, place + 64)]:
        other = (
            bytes([whole[index] ^ 1])
            if index < len(data)
            else b'%x' % (15 - int(whole[index:][:1], 16))
        )
        path.write_bytes(whole[:index] + other + whole[index + 1 :])
        with pytest.raises(ClipQError, match=f'a{suffix}: found another checksum than the one'):
            check_seal(path)


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_a_file_without_a_checksum_passes(tmp_path, suffix):
    path = tmp_path / f'a{suffix}'
    for data in (b'', b'anything', sealed(b'anything', suffix)[:-1]):
        path.write_bytes(data)
        check_seal(path)


def test_onnx_takes_it_for_metadata(tmp_path):
    onnx = pytest.importorskip('onnx')
    info = onnx.helper.make_tensor_value_info('x', 1, [1])
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    graph = onnx.helper.make_graph([node], 'g', [info], [
        onnx.helper.make_tensor_value_info('y', 1, [1])
    ])  # fmt: skip
    model = onnx.helper.make_model(graph)
    onnx.helper.set_model_props(model, {'a': 'b'})
    found = onnx.load_from_string(sealed(model.SerializeToString(), '.onnx'))
    onnx.checker.check_model(found)
    assert [entry.key for entry in found.metadata_props] == ['a', KEY]
    assert found.graph == model.graph
