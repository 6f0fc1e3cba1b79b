"""Export: a student as a file for a deployment engine, and the engines that run it.

Nothing is imported here, and `formats`, `engines` and `onnx` import no torch at their top: an
exported ``.onnx`` runs with numpy, onnxruntime and Pillow alone.
"""
