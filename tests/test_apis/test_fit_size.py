"""Files of a wanted size, which load and hold the codes that were chosen."""

import math

import pytest
import torch

from mmclipq.apis import fit_size as module
from mmclipq.apis import load_int8
from mmclipq.apis.fit_size import fit_size
from mmclipq.apis.int8_file import int8_size, load_parts, save_int8
from mmclipq.apis.quantize_checkpoint import float_bytes
from mmclipq.apis.quantize_model import calibrate
from mmclipq.calibration.options import CalibrationOptions
from mmclipq.errors import ClipQError

OPTIONS = CalibrationOptions()


@pytest.fixture
def session(float_model):
    generator = torch.Generator().manual_seed(0)
    session = calibrate(float_model, [torch.rand(1, 3, 64, 96, generator=generator)])
    session.measure(OPTIONS)
    return session


def fitted(session, cfg, share, compress='fast'):
    wanted = share * float_bytes(session.model)
    return fit_size(
        session, OPTIONS, wanted, lambda q: int8_size(session.model, q, cfg, {}, compress)
    )


def test_a_file_is_as_large_as_it_may_be_and_loads(session, cfg, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_CLOSE', 0.25)  # fewer tries
    found = fitted(session, cfg, 0.16)
    assert 0.75 * found.wanted < found.size <= found.wanted
    quantized = session.finish(OPTIONS)
    path = tmp_path / 'a.clipq'
    assert save_int8(path, session.model, quantized, cfg, {}) == found.size
    assert str(found.size) in str(found)
    for mine, other in zip(quantized.graphs, load_parts(path).graphs, strict=True):
        assert all(torch.equal(mine.constants[key], other.constants[key]) for key in mine.constants)
    load_int8(path)


class Session:
    """Its sizes fall with the rate as those of files do, down to what zeros take."""

    moments = 0

    def measure_moments(self):
        self.moments += 1

    def weigh(self, rate):
        self.octave = math.log2(rate)

    def finish(self, options):
        return round(2 + 1000 / (1 + 2 ** ((self.octave + 25) / 3)))


@pytest.mark.parametrize('wanted', [30, 300, 600, 950])
def test_few_files_are_made(wanted):
    session = Session()
    found = fit_size(session, OPTIONS, wanted, lambda size: size)
    assert 0.95 * wanted < found.size <= wanted
    assert session.finish(OPTIONS) == found.size
    assert (found.tries, session.moments) == (pytest.approx(5, abs=3), 1)
    assert session.octave == math.log2(found.rate)


def test_a_size_that_asks_for_nothing_has_the_finest_codes():
    assert fit_size(Session(), OPTIONS, 5000, lambda size: size).rate == 2.0**-40


def test_known_sizes_are_not_made_again(monkeypatch):
    known, session = {}, Session()
    first = fit_size(session, OPTIONS, 300, lambda size: size, known)
    assert len(known) == first.tries
    monkeypatch.setattr(session, 'finish', None)
    assert fit_size(session, OPTIONS, 300, None, known) == first


def test_a_size_that_weights_of_zero_do_not_have():
    with pytest.raises(ClipQError, match=r'--size: found 5 bytes even with weights of zero'):
        fit_size(Session(), OPTIONS, 4, lambda size: size)


def test_the_dense_form_of_a_detector(session, cfg, tmp_path):
    pytest.importorskip('constriction', reason='the dense form needs constriction')
    quantized = session.finish(OPTIONS)
    fast, best = tmp_path / 'fast.clipq', tmp_path / 'best.clipq'
    assert save_int8(best, session.model, quantized, cfg, {}, 'best') < 0.96 * save_int8(
        fast, session.model, quantized, cfg, {}
    )
    load_int8(best)
    for one, other in zip(load_parts(fast).graphs, load_parts(best).graphs, strict=True):
        assert (one.nodes, one.constants.keys()) == (other.nodes, other.constants.keys())
        assert all(torch.equal(one.constants[key], other.constants[key]) for key in one.constants)


def test_compressions_have_names(session, cfg, tmp_path):
    with pytest.raises(ClipQError, match=r"compress: found 'most', wanted one of"):
        save_int8(tmp_path / 'a.clipq', session.model, session.finish(OPTIONS), cfg, {}, 'most')
