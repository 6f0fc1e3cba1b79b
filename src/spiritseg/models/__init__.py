"""Networks: a Segmenter is an extractor, then a head."""

from spiritseg.models.compact import compact
from spiritseg.models.critic import Critic, critic
from spiritseg.models.entries import Request, Source
from spiritseg.models.factory import build_network
from spiritseg.models.heads import HEADS, HeadKind, PyramidHead, pyramid_head, student, student_head
from spiritseg.models.networks import build_networks
from spiritseg.models.segmenter import Extractor, Segmenter, project
from spiritseg.models.separable import separable
from spiritseg.models.sources import SOURCES, splits, teacher
from spiritseg.models.whole import WholeNetwork

__all__ = [
    "HEADS",
    "SOURCES",
    "Critic",
    "Extractor",
    "HeadKind",
    "PyramidHead",
    "Request",
    "Segmenter",
    "Source",
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
]
