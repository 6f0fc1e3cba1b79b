"""Out of the laboratory: export, prediction on files and video, benchmarks.

Nothing is imported here, and `card`, `runtime`, `sources`, `outputs` and `predict` import no
torch: an exported ``.onnx`` runs beside numpy, onnxruntime, Pillow, rich and av alone.
"""
