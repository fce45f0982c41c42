"""Registries of the scope ``mmclipq`` that mirror into MMDetection's.

A config can say ``type='mmclipq.ClipQHook'``, upon which MMEngine imports this module and nothing
else is needed, or plain ``type='ClipConv'`` once mmclipq is imported.
"""

from mmdet import registry as mmdet_registry
from mmengine import registry as mmengine_registry
from mmengine.registry import Registry


class _MirroredRegistry(Registry):
    """Registers each module in MMDetection's registry of the same kind, too."""

    def __init__(self, kind: str, location: str) -> None:
        super().__init__(
            kind.lower(),
            parent=getattr(mmengine_registry, kind),
            scope='mmclipq',
            locations=[location],
        )
        self._mirror = getattr(mmdet_registry, kind)

    def _register_module(self, module, module_name=None, force=False):
        super()._register_module(module, module_name, force)
        self._mirror._register_module(module, module_name, force)


MODELS = _MirroredRegistry('MODELS', 'mmclipq.models')
HOOKS = _MirroredRegistry('HOOKS', 'mmclipq.engine')
RUNNERS = _MirroredRegistry('RUNNERS', 'mmclipq.engine')
