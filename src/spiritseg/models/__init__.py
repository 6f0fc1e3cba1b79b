"""Networks: a Segmenter is an extractor, then a head."""

from spiritseg.models.build import build_network
from spiritseg.models.compact import compact
from spiritseg.models.critic import Critic, critic
from spiritseg.models.extractors import project, separable
from spiritseg.models.heads import student, student_head
from spiritseg.models.networks import build_networks
from spiritseg.models.pyramid import PyramidHead, pyramid_head
from spiritseg.models.segmenter import Extractor, Segmenter
from spiritseg.models.teachers import TEACHERS, splits, teacher
from spiritseg.models.whole import WholeNetwork, whole_network

__all__ = [
    "TEACHERS",
    "Critic",
    "Extractor",
    "PyramidHead",
    "Segmenter",
    "WholeNetwork",
    "build_network",
    "build_networks",
    "compact",
    "critic",
    "project",
    "pyramid_head",
    "separable",
    "splits",
    "student",
    "student_head",
    "teacher",
    "whole_network",
]
