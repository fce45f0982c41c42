#!/usr/bin/env python
"""Compare codes of random graphs over every kind of node between the reference and other backends.

Each graph is made from its number, so one that differs can be made again with --first.
"""

import argparse
import collections
import sys

from _tool import run


def compare(seed: int, nodes: int, backends: list[str]) -> tuple[int, list[str], list[str]]:
    """Codes compared, what differs, and the kinds of the graph's nodes."""
    import torch
    from _graphs import random_graph

    from mmclipq.backends import build_backend

    made = random_graph(seed, nodes)
    reference = build_backend('reference', made.graph, made.islands).codes(*made.inputs)
    count, wrong = 0, []
    for name in backends:
        found = build_backend(name, made.graph, made.islands).codes(*made.inputs)
        count += sum(codes.numel() for codes in reference.values())
        different = [
            key
            for key, codes in reference.items()
            if codes.shape != found[key].shape or not torch.equal(codes, found[key])
        ]
        if different:
            wrong.append(f'graph {seed}: {name} differs first in {different[0]}')
    return count, wrong, [type(node).__name__ for node in made.graph.nodes]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--count', type=int, default=200, help='number of graphs (default: 200)')
    parser.add_argument('--first', type=int, default=0, help='number of the first (default: 0)')
    parser.add_argument('--nodes', type=int, default=12, help='nodes of a graph (default: 12)')
    parser.add_argument('--backends', nargs='+', default=['cpu', 'int_mm'])
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_range

    check_range('--count', args.count, 1)
    check_range('--nodes', args.nodes, 3)

    import torch
    from tqdm import tqdm

    from mmclipq.backends.base import check_name

    for name in args.backends:
        check_name(name)
    torch.set_num_threads(1)
    kinds: collections.Counter = collections.Counter()
    total, different = 0, 0
    for seed in tqdm(range(args.first, args.first + args.count), desc='graphs', unit='graph'):
        count, wrong, found = compare(seed, args.nodes, args.backends)
        total, different = total + count, different + len(wrong)
        kinds.update(found)
        for text in wrong:
            tqdm.write(text)
    print(', '.join(f'{kind} {count}' for kind, count in kinds.most_common()))
    print(f'{args.count} graphs, {total} codes compared, {different} graphs differ')
    sys.exit(1 if different else 0)


if __name__ == '__main__':
    run(main)
