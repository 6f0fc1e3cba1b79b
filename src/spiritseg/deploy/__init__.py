"""Deployment: export, the engines that run exports, benchmarks.

Nothing is imported here. `card`, `runtime` and `spiritseg.predict` import no torch: an exported
``.onnx`` needs only numpy, onnxruntime, Pillow, rich and av.
"""
