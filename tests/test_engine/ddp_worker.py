"""One rank of the training that test_clipq_hook_ddp.py starts: CONFIG OUT.

The images of rank 1 are 16 times as bright, so that its own ranges would be others.
"""

import sys

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import distributed as dist

import mmclipq  # noqa: F401
from mmclipq.calibration.observer import OctaveHistogram
from mmclipq.prepare import ranges_state


class Images(Hook):
    """Keeps the numbers of the images that this rank trains on."""

    def __init__(self):
        self.seen = set()

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen |= {sample.img_id for sample in data_batch['data_samples']}


def main(config: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group('gloo')
    rank = dist.get_rank()
    cfg = Config.fromfile(config)
    local = {}
    all_reduce = OctaveHistogram.all_reduce

    def recording(histogram: OctaveHistogram) -> None:
        exponent = histogram.percentile_exponent(cfg.clipq.percentile)
        local[histogram.name.removeprefix('input of ')] = exponent
        all_reduce(histogram)

    OctaveHistogram.all_reduce = recording
    runner = Runner.from_cfg(cfg)
    if rank == 1:
        preprocessor = runner.model.module.data_preprocessor
        preprocessor.std = preprocessor.std / 16
    images = Images()
    runner.register_hook(images)
    runner.train()
    model = runner.model.module
    result = {
        'local': local,
        'ranges': ranges_state(model),
        'weights': {name: p.detach() for name, p in model.named_parameters()},
        'images': images.seen,
        'wrapper': type(runner.model).__name__,
    }
    torch.save(result, f'{out}/rank{rank}.pt')
    dist.destroy_process_group()


if __name__ == '__main__':
    main(*sys.argv[1:])
