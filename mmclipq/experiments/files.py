"""Files of a job: its description, its result, its log."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config

DESCRIPTION = 'job.json'
RESULT = 'result.json'
LOG = 'output.log'


def write(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    part = path.with_name(f'{path.name}.part')
    part.write_text(json.dumps(content, indent=1) + '\n')
    os.replace(part, path)


def job_config(text: str) -> Config:
    """The config of a job."""
    return Config(ast.literal_eval(text))
