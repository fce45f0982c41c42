"""A small detector that has learnt its six test images by heart, in seconds."""

import dataclasses
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmclipq import fixed_point as fp
from mmclipq.analysis.images import AnalysedImages
from mmclipq.analysis.int8_layers import Int8Layers
from mmclipq.analysis.page.write import write_report
from mmclipq.analysis.run import Options, analyze, float_detector
from mmclipq.apis import build_detector, quantize, save_int8
from mmclipq.apis.calibration_data import config_batches
from mmclipq.graph import ir

ROOT = Path(__file__).parents[2]
STEPS = 70


@pytest.fixture(scope='session')
def small_cfg(digits_root) -> Config:
    """The small detector of configs/quickstart, trained and tested on the same small images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DIGITS_ROOT', str(digits_root))
        cfg = Config.fromfile(ROOT / 'configs/quickstart/yolov3_mobilenetv2_digits.py')
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False, batch_size=6)
        for step in loader.dataset.pipeline:
            if step.type == 'Resize':
                step.scale = (64, 64)
    cfg.train_dataloader.dataset.ann_file = cfg.test_dataloader.dataset.ann_file
    return cfg


@pytest.fixture(scope='session')
def checkpoint(small_cfg, tmp_path_factory) -> Path:
    """Its float checkpoint."""
    torch.manual_seed(0)
    model = build_detector(small_cfg.model, random=True).train()
    (batch,) = Runner.build_dataloader(small_cfg.train_dataloader, seed=0)
    data = model.data_preprocessor(batch, True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group['lr'] = 8e-3 * min(1, (step + 1) / 10, (STEPS - step) / (0.3 * STEPS))
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
    path = tmp_path_factory.mktemp('learnt') / 'float.pth'
    torch.save({'state_dict': model.state_dict()}, path)
    return path


@pytest.fixture(scope='session')
def learnt(small_cfg, checkpoint):
    """It in float. Every test that uses it leaves it as it was."""
    return float_detector(small_cfg, checkpoint)


@pytest.fixture(scope='session')
def parts(small_cfg, checkpoint):
    """Its integer graphs."""
    return quantize(float_detector(small_cfg, checkpoint), config_batches(small_cfg, 6))


@pytest.fixture(scope='session')
def layers(learnt, parts):
    return Int8Layers(learnt, parts)


@pytest.fixture(scope='session')
def images(small_cfg):
    return AnalysedImages(small_cfg)


def with_input_exponent(graph: ir.Int8Graph, layer: str, by: int) -> ir.Int8Graph:
    """``graph`` with another range of the codes that ``layer`` reads, and nothing else changed."""
    reader = next(node for node in graph.products() if node.weight == f'{layer}.weight')
    read = reader.x
    readers = [node for node in graph.nodes if read in node.inputs]
    assert all(isinstance(n, ir.Product) and n.residual != read for n in readers)
    constants = dict(graph.constants)
    for node in readers:
        constants[node.multiplier] = constants[node.multiplier] * 2.0**by
    nodes = tuple(
        dataclasses.replace(n, type=dataclasses.replace(n.type, exponent=n.type.exponent + by))
        if n.name == read
        else n
        for n in graph.nodes
    )
    return ir.Int8Graph(nodes, graph.outputs, constants)


def with_weight_exponents(graph: ir.Int8Graph, layers: Int8Layers, layer: str, by: int):
    """``graph`` with other ranges of the weights of ``layer``, and nothing else changed."""
    constants = dict(graph.constants)
    key = f'{layer}.weight'
    exponents = constants[f'{layer}.weight_exponents'] + by
    constants[f'{layer}.weight_exponents'] = exponents
    constants[key] = fp.encode(layers.float_weight(layer), exponents, axis=0)
    for node in graph.products():
        if node.weight == key:
            constants[node.multiplier] = constants[node.multiplier] * 2.0**by
    return ir.Int8Graph(graph.nodes, graph.outputs, constants)


@pytest.fixture(scope='session')
def plant(parts, layers):
    """Makes the parts with one exponent off: of a layer's ``'input'`` or its ``'weight'``."""

    def planted(what: str, layer: str, by: int):
        if what == 'input':
            graph = with_input_exponent(parts.graph, layer, by)
        else:
            graph = with_weight_exponents(parts.graph, layers, layer, by)
        return dataclasses.replace(parts, graph=graph)

    return planted


@pytest.fixture(scope='session')
def faulty() -> str:
    """Name of a layer."""
    return 'neck.detect2.conv2.conv'


@pytest.fixture(scope='session')
def analysed(small_cfg, checkpoint, learnt, plant, faulty, tmp_path_factory):
    """An analysis of it with one layer whose input exponent is too small by three, ``faulty``."""
    file = tmp_path_factory.mktemp('planted') / 'a.clipq'
    meta = {'classes': tuple('0123456789')}
    save_int8(file, learnt, plant('input', faulty, -3), small_cfg, meta)
    return analyze(small_cfg, checkpoint, file, Options(sample=3, suspects=2, pictures=1))


@pytest.fixture(scope='session')
def report(analysed, tmp_path_factory) -> Path:
    """The folder of its report."""
    return write_report(analysed, tmp_path_factory.mktemp('reports') / 'report').parent
