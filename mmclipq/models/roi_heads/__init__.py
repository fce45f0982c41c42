from .bbox_heads import SVDBBoxHead

__all__ = ['SVDBBoxHead']
