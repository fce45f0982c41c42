#!/usr/bin/env python
"""Serve an int8 file over HTTP with LitServe (``pip install litserve``).

``POST /predict`` takes ``{"image": "base64 of a JPEG or PNG file"}`` and gives ``{"labels": [...],
"scores": [...], "bboxes": [[x1, y1, x2, y2], ...]}`` in pixels of that image. Each worker is a
process with the file loaded and one thread; Ctrl-C or SIGTERM ends all of them.
"""

import argparse
import base64
import binascii
import signal

import litserve
import mmcv
import torch
from fastapi import HTTPException

from mmclipq.apis.inferencer import Int8Inferencer
from mmclipq.apis.mmdet_tools import check_file, check_range
from mmclipq.apis.overlap import default_workers


class Detection(litserve.LitAPI):
    """One worker.

    Args:
        file: ``.clipq`` file, or an end-to-end ``.onnx`` or ``.xml``.
        score_thr: Lowest score of a box that is answered.
        **options: Those of LitServe.
    """

    def __init__(self, file: str, score_thr: float, **options) -> None:
        super().__init__(**options)
        self.file, self.score_thr = file, score_thr

    def setup(self, device: str) -> None:
        torch.set_num_threads(1)
        self.inferencer = Int8Inferencer(self.file, device=device, show_progress=False)

    def decode_request(self, request: dict):
        """The image, BGR uint8 ``(H, W, 3)``."""
        try:
            image = mmcv.imfrombytes(base64.b64decode(request['image'], validate=True))
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise HTTPException(400, 'found no base64 text as "image", wanted a file') from error
        if image is None:
            raise HTTPException(400, 'found no readable image, wanted a JPEG or PNG file')
        return image

    def predict(self, image):
        (found,) = self.inferencer([image])['predictions']
        return found

    def encode_response(self, found: dict) -> dict:
        kept = [number for number, score in enumerate(found['scores']) if score >= self.score_thr]
        return {name: [found[name][i] for i in kept] for name in ('labels', 'scores', 'bboxes')}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('file', help='.clipq file, or an end-to-end .onnx or .xml')
    parser.add_argument('--host', default='127.0.0.1', help='(default: 127.0.0.1)')
    parser.add_argument('--port', type=int, default=8000, help='(default: 8000)')
    parser.add_argument('--workers', type=int, help='processes (default: one for each core)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='(default: 0.3)')
    args = parser.parse_args()
    check_file(args.file, 'a .clipq file or an exported one')
    check_range('--score-thr', args.score_thr, 0, 1)
    workers = default_workers() if args.workers is None else args.workers
    check_range('--workers', workers, 1)
    server = litserve.LitServer(
        Detection(args.file, args.score_thr), accelerator='cpu', workers_per_device=workers
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # else workers would stay
    server.uvicorn_graceful_timeout = 3  # seconds that Ctrl-C waits for open connections
    server.run(
        args.host, args.port, num_api_servers=1, generate_client_file=False, access_log=False
    )


if __name__ == '__main__':
    main()
