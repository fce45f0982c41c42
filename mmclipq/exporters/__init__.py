"""Writes an ``Int8Graph`` in the formats that other runtimes read.

Nothing here imports onnx, onnxruntime or openvino before it is used.
"""
