#!/usr/bin/env python
"""Time and memory of a clipped training step beside the stock one, in turn within one run."""

import argparse
import statistics
import time

from _tool import run


def _fake_batch(batch: int, height: int, width: int, classes: int):
    """Noise images with a few boxes each, as the data preprocessor gives them."""
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    samples = []
    for _ in range(batch):
        corner = torch.rand(8, 2) * torch.tensor([width / 2, height / 2])
        size = 16 + torch.rand(8, 2) * torch.tensor([width / 3, height / 3])
        sample = DetDataSample()
        sample.gt_instances = InstanceData(
            bboxes=torch.cat([corner, corner + size], 1), labels=torch.randint(classes, (8,))
        )
        shape = (height, width)
        sample.set_metainfo(
            {'img_shape': shape, 'ori_shape': shape, 'pad_shape': shape, 'batch_input_shape': shape}
        )
        samples.append(sample)
    return torch.rand(batch, 3, height, width), samples


def _naive(model):
    """Clamps before stock layers, as one would write them first, for the memory comparison."""
    import torch
    from torch import nn

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_pre_hook(lambda m, args: (torch.clamp(args[0], -8, 8),))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help="detector config, or the name of one of mmdet's")
    parser.add_argument('--shape', type=int, nargs=2, default=(320, 320), metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=4)
    parser.add_argument('--rounds', type=int, default=5, help='counted steps of each')
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_range, find_config

    args.config = find_config(args.config)
    for name, value in (('batch', args.batch), ('rounds', args.rounds), ('shape', min(args.shape))):
        check_range(f'--{name}', value, 1)

    import torch
    from mmengine.config import Config
    from torch.autograd.graph import saved_tensors_hooks

    from mmclipq.apis import build_detector
    from mmclipq.models.losses import LqLoss
    from mmclipq.prepare import clip_layers, find_weight_ranges, prepare_model

    torch.set_flush_denormal(True)
    cfg = Config.fromfile(args.config)
    torch.manual_seed(0)
    stock = build_detector(cfg.model, random=True).train()
    state = stock.state_dict()
    models = {'stock': stock}
    for name in ('clipped', 'naive clamps'):
        models[name] = build_detector(cfg.model, random=True).train()
        models[name].load_state_dict(state)
    prepare_model(models['clipped'], input_range=8.0, weight_range=1.0)
    find_weight_ranges(models['clipped'])
    _naive(models['naive clamps'])
    lq = LqLoss()
    classes = getattr(stock.bbox_head, 'num_classes', 1) if hasattr(stock, 'bbox_head') else 1
    height, width = args.shape
    images, samples = _fake_batch(args.batch, height, width, classes)

    def step(name: str) -> tuple[float, int]:
        """Seconds of one forward and backward pass, and bytes that autograd keeps between."""
        model, kept = models[name], {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        model.zero_grad(set_to_none=True)
        start = time.perf_counter()
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = model.loss(images, samples)
            if name == 'clipped':
                losses['loss_lq'] = lq(layer for _, layer in clip_layers(model))
        total, _ = model.parse_losses(losses)
        total.backward()
        seconds = time.perf_counter() - start
        return seconds, sum(size for pointer, size in kept.items() if pointer not in weights)

    times: dict[str, list[float]] = {name: [] for name in models}
    memory: dict[str, int] = {}
    for turn in range(args.rounds + 1):
        for name in models:
            seconds, memory[name] = step(name)
            if turn:  # the first round warms up
                times[name].append(seconds)
    print(f'{args.config}, batch {args.batch} of {args.shape[0]}x{args.shape[1]}, '
          f'{torch.get_num_threads()} threads, median of {args.rounds} steps in turn')  # fmt: skip
    print('| step | seconds (min to max) | ratio | kept activations MiB | ratio |')
    print('|---|---|---|---|---|')
    for name in models:
        ratio = statistics.median(a / b for a, b in zip(times[name], times['stock'], strict=True))
        print(
            f'| {name} | {statistics.median(times[name]):.3f} ({min(times[name]):.3f} to '
            f'{max(times[name]):.3f}) | {ratio:.3f} | {memory[name] / 2**20:.1f} '
            f'| {memory[name] / memory["stock"]:.3f} |'
        )


if __name__ == '__main__':
    run(main)
