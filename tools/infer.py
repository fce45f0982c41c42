#!/usr/bin/env python
"""Detect objects on images, folders or videos with an int8 file; pictures and JSON come out.

Several processes: ``torchrun --nproc-per-node 2 tools/infer.py FILE.clipq photos/``. Each detects
on its share of the batches and writes the files of its own images; with GPUs each takes one.
"""

import argparse
from pathlib import Path

from _tool import run


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('file', help='.clipq file, or an end-to-end .onnx or .xml')
    parser.add_argument('input', nargs='+', help='images, folders of images, or one video')
    parser.add_argument('--out', default='outputs', help='folder (default: outputs)')
    parser.add_argument('--backend', default='auto', help='of a .clipq file: auto, cpu, cuda, ...')
    parser.add_argument('--device', help='cpu or cuda (default: a GPU if there is one)')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='lowest score that is drawn (default: 0.3)'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='(default: 1)')
    parser.add_argument(
        '--workers', type=int, help='batches at once, one thread each (default: one for each core)'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write JSON alone')
    parser.add_argument('--no-json', action='store_true', help='write pictures alone')
    args = parser.parse_args(arguments)

    from mmclipq.apis.mmdet_tools import check_device, check_file, check_range

    check_file(args.file, 'a .clipq file or an exported one')
    if args.device is not None:
        check_device(args.device)
    check_range('--batch-size', args.batch_size, 1)
    if args.workers is not None:
        check_range('--workers', args.workers, 1)
    check_range('--score-thr', args.score_thr, 0, 1)

    from mmclipq.apis.inferencer import (
        VIDEO_CODECS,
        Int8Inferencer,
        check_names,
        default_device,
        find_inputs,
    )
    from mmclipq.apis.overlap import default_workers
    from mmclipq.apis.shares import local_number, place, share, totals
    from mmclipq.errors import ClipQError

    inputs = args.input[0] if len(args.input) == 1 else args.input
    found = find_inputs(inputs)
    rank, processes = place()
    device = args.device
    if processes > 1:
        if isinstance(inputs, str) and Path(inputs).suffix.lower() in VIDEO_CODECS:
            raise ClipQError(f'{inputs}: found a video and {processes} processes, wanted one')
        check_names(found)
        inputs = share(found, args.batch_size, rank, processes)
        device = device or default_device(args.file, args.backend)
        if device == 'cuda':
            device = f'cuda:{local_number()}'
            check_device(device)
    # Processes share the cores: each works on one batch at a time.
    workers = args.workers or (default_workers() if processes == 1 else 1)
    inferencer = Int8Inferencer(
        args.file, args.backend, device, show_progress=rank == 0, workers=workers
    )
    options = dict(
        pred_score_thr=args.score_thr,
        no_save_vis=args.no_pictures,
        no_save_pred=args.no_json,
        out_dir=args.out,
    )
    # There may be more processes than batches.
    results = inferencer(inputs, args.batch_size, **options)['predictions'] if inputs else []
    drawn = sum(score >= args.score_thr for result in results for score in result['scores'])
    images, drawn = totals([len(results), drawn], processes)
    if rank:
        return
    places = [
        str(Path(args.out) / name)
        for name, absent in (('vis', args.no_pictures), ('preds', args.no_json))
        if not absent
    ]
    print(
        f'{images} images, {drawn} objects with a score of {args.score_thr} or more'
        + (f'; see {" and ".join(places)}' if places else '')
    )


if __name__ == '__main__':
    run(main)
