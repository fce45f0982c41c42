"""Float checkpoints: strict loading, one sentence for every file that does not fit."""

import pytest
import torch
from mmengine.runner import save_checkpoint

from mmclipq.apis import load_float_checkpoint
from mmclipq.errors import ClipQError


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'found no file'),
        (b'', 'found no readable checkpoint'),
        (b'text', 'found no readable checkpoint'),
        ({}, 'found no state_dict'),
        ([1, 2], 'found no state_dict'),
        ({'state_dict': 3}, 'found no state_dict'),
    ],
)
def test_unreadable_checkpoints(float_model, tmp_path, content, message):
    path = tmp_path / 'bad.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ClipQError, match=rf'bad\.pth: {message}') as caught:
        load_float_checkpoint(float_model, path)
    assert '\n' not in str(caught.value)


def test_truncated_checkpoint(float_model, checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(ClipQError, match=r'float\.pth: found no readable checkpoint'):
        load_float_checkpoint(float_model, checkpoint)


def test_checkpoint_with_code_is_not_run(float_model, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / 'made'), 'w'))

    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {}, 'meta': Evil()}, path)
    with pytest.raises(ClipQError, match=r'evil\.pth: found no readable checkpoint'):
        load_float_checkpoint(float_model, path)
    assert not (tmp_path / 'made').exists()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('neck.conv1.conv.weight'), r"it lacks 'neck\.conv1\.conv\.weight'"),
        (lambda s: s.update(extra=torch.zeros(1)), "it has 'extra'"),
        (
            lambda s: s.update({'neck.conv1.conv.weight': torch.zeros(3, 2, 1, 1)}),
            r'neck\.conv1\.conv\.weight\b.*3, 2, 1, 1',
        ),
    ],
)
def test_checkpoint_of_another_architecture(float_model, tmp_path, change, message):
    state = dict(float_model.state_dict())
    change(state)
    path = tmp_path / 'other.pth'
    save_checkpoint({'state_dict': state}, str(path))
    with pytest.raises(ClipQError, match=rf'other\.pth: .*{message}'):
        load_float_checkpoint(float_model, path)
