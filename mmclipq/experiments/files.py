"""Files of a job: its description, its result, its log."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..graph.writing import write_atomically

DESCRIPTION = 'job.json'
RESULT = 'result.json'
LOG = 'output.log'


def write(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=1) + '\n').encode())


def job_config(text: str) -> Config:
    """The config of a job."""
    return Config(ast.literal_eval(text))
