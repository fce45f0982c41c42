#!/usr/bin/env python
"""Time the dense part of a detector in every runtime at hand, in turn, in one run.

Peers that are not installed are left out with a line that says so: pip install 'mmclipq[bench]'.
Without a checkpoint the weights are fresh ones, which take the same time.
"""

import argparse
import json
import sys
from pathlib import Path

from mmclipq.apis.mmdet_tools import check_file, one_sentence_errors
from mmclipq.errors import ClipQError


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='detector config')
    parser.add_argument('checkpoint', nargs='?', help='float checkpoint (.pth)')
    parser.add_argument('--shape', type=int, nargs=2, required=True, metavar=('H', 'W'))
    parser.add_argument('--batch', type=int, default=1, help='images at once (default: 1)')
    parser.add_argument('--threads', type=int, help="threads (default: torch's)")
    parser.add_argument('--rounds', type=int, default=10, help='timed rounds (default: 10)')
    parser.add_argument('--peers', help='names separated by commas (default: all)')
    parser.add_argument('--json', help='file for the figures')
    args = parser.parse_args(arguments)
    check_file(args.config, 'a detector config')

    import torch
    from mmengine.config import Config

    from mmclipq.apis import build_detector, load_float_checkpoint, quantize
    from mmclipq.detector import plain_samples, to_int8
    from mmclipq.evaluation.benchmark import operations, peak_run, table, time_in_turn
    from mmclipq.evaluation.peers import Peers
    from mmclipq.graph.capture import capture
    from mmclipq.graph.nodes import Product
    from mmclipq.ops.library import why_unavailable

    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = Config.fromfile(args.config)
    stock, model = (build_detector(cfg.model, random=True).eval() for _ in range(2))
    if args.checkpoint:
        load_float_checkpoint(stock, args.checkpoint)
    model.load_state_dict(stock.state_dict())
    image = torch.randn(args.batch, 3, *args.shape)
    quantized = quantize(model, [image[:1]])
    peers = Peers(capture(stock).module, quantized.graph, model, image).all
    wanted = args.peers.split(',') if args.peers else list(peers)
    if unknown := [name for name in wanted if name not in peers]:
        raise ClipQError(f'--peers: found {unknown}, wanted some of {list(peers)}')
    runs = {}
    for name in wanted:
        reason, prepare = peers[name]
        if reason:
            print(f'{name}: left out, {reason}')
            continue
        print(f'preparing {name}')
        with torch.no_grad():
            runs[name] = prepare()
    peak_name = 'large int8 product'
    if not why_unavailable():
        runs[peak_name], peak_work = peak_run()
    timings = time_in_turn(runs, args.rounds)
    peak = None
    if peak_name in runs:
        peak = peak_work / timings.pop().median * 1000
        print(f'large int8 product: {peak / 1000:.2f} TOP/s on {torch.get_num_threads()} thread(s)')
    detector, samples = to_int8(model, quantized), plain_samples(image)
    shapes = {}

    def note(node, value):
        if isinstance(node, Product):
            shapes[node.name] = value.shape

    detector.int8_backend.run(image, observe=note)
    work = operations(quantized.graph, shapes)
    print(table(timings, work, peak))
    whole = time_in_turn(
        {
            'torch': lambda: stock.predict(image, plain_samples(image)),
            'mmclipq': lambda: detector.predict(image, samples),
        },
        max(3, args.rounds // 3),
    )
    print(table(whole, work, None).replace('dense part', 'image tensor to boxes'))
    if args.json:
        Path(args.json).parent.mkdir(parents=True, exist_ok=True)
        content = {'dense': [t.as_dict() for t in timings], 'whole': [t.as_dict() for t in whole]}
        Path(args.json).write_text(
            json.dumps({**content, 'giga_operations': work}, indent=2) + '\n'
        )


if __name__ == '__main__':
    with one_sentence_errors():
        main(sys.argv[1:])
