from .svd_bbox_head import SVDBBoxHead

__all__ = ['SVDBBoxHead']
