"""Networks: a Segmenter is an extractor, then a head."""

from spiritseg.models.build import build_network, build_networks
from spiritseg.models.compact import compact
from spiritseg.models.extractors import project, separable
from spiritseg.models.heads import student, student_head
from spiritseg.models.segmenter import Extractor, Segmenter
from spiritseg.models.teachers import TEACHERS, splits, teacher

__all__ = [
    "TEACHERS",
    "Extractor",
    "Segmenter",
    "build_network",
    "build_networks",
    "compact",
    "project",
    "separable",
    "splits",
    "student",
    "student_head",
    "teacher",
]
