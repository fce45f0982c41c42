"""What tests of files share."""

import pytest

from mmclipq.graph.artifact import ArtifactError, load_artifact


@pytest.fixture
def assert_damage_is_named():
    """Checks that a file's content is refused in one sentence that begins with its path."""

    def check(path):
        with pytest.raises(ArtifactError, match='found content that does not fit') as caught:
            load_artifact(path)
        assert str(caught.value).startswith(f'{path}: ')
        assert '\n' not in str(caught.value)

    return check
