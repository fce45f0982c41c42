"""Tests a float checkpoint behind the integers, on the same images, and tells the difference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from tqdm import tqdm

from ..apis.detectors import build_detector, load_float_checkpoint
from .coco import MatchedBoxes
from .interval import ap_differences, difference_table


def test_against(
    runner: Runner, test: Callable[[], dict[str, Any]], checkpoint: str
) -> dict[str, Any]:
    """Run a runner's test, then the same images through a float checkpoint, and print both APs.

    Args:
        runner: A runner whose ``replace_detector`` puts another detector into its model and whose
            ``detector_config`` is the config of the bare detector.
        test: Runs its test.
        checkpoint: Float checkpoint of the config's detector.

    Returns:
        What ``test`` returns.

    Raises:
        ClipQError: if the checkpoint does not fit the config.
    """
    detector = build_detector(runner.detector_config().model)
    load_float_checkpoint(detector, checkpoint)  # before the test: it may be the wrong one
    loop, device = runner.test_loop, next(runner.model.parameters()).device
    boxes = MatchedBoxes.beside(loop.evaluator, loop.dataloader.dataset)
    metrics = test()
    tested = boxes.matches
    runner.replace_detector(detector.to(device).eval())
    # On its own: the config's metrics and hooks have written what they had to write.
    evaluator = Evaluator([boxes])
    with torch.no_grad():
        for batch in tqdm(
            loop.dataloader, desc='float', unit='batch', disable=not is_main_process()
        ):
            evaluator.process(runner.model.test_step(batch), batch)
    evaluator.evaluate(len(loop.dataloader.dataset))
    if is_main_process():
        assert tested is not None
        rows = [(d.name, d) for d in ap_differences(boxes.result(), tested)]
        print(difference_table('int8 against float', rows))
    return metrics
