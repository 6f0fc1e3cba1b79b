"""Networks by class path: how they are imported and constructed, and what needs trust."""

from __future__ import annotations

import importlib
import inspect
import re
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from spiritseg import config
from spiritseg.config import MAX_CHANNELS
from spiritseg.errors import ConfigError, MissingExtraError, SpiritsegError, WeightsError, unknown
from spiritseg.models.entries import Request, Source
from spiritseg.models.segmenter import Segmenter
from spiritseg.models.weights import fit_weights, is_file, read_weights
from spiritseg.models.whole import WholeExtractor, WholeNetwork

__all__ = [
    "CLASS_PATH",
    "DOWNLOADS",
    "construct",
    "is_class_path",
    "is_library_network",
    "untrusted_argument",
]

_SMP = "segmentation_models_pytorch"
_LIBRARIES = ("torchvision", "timm", _SMP)

# What these libraries' constructors call weights that they fetch, and the value that fetches none.
DOWNLOADS: dict[str, Any] = {
    "weights": None,
    "weights_backbone": None,
    "encoder_weights": None,
    "pretrained": False,
}

_CLASSES = ("num_classes", "classes")

# Arguments that a bundle may give without trust. Each describes an architecture, as numbers or as
# a word out of a table of its library; none names a file, an address, weights or a cache.
_ARCHITECTURE_WORDS = """
num_classes classes in_channels in_chans img_size image_size seed mean std
encoder_name encoder_depth encoder_output_stride encoder_output_indices
decoder_channels decoder_use_norm decoder_attention_type decoder_interpolation
decoder_pyramid_channels decoder_segmentation_channels decoder_merge_policy decoder_dropout
decoder_atrous_rates decoder_aspp_separable decoder_aspp_dropout decoder_pab_channels
decoder_readout decoder_intermediate_channels decoder_fusion_channels
psp_out_channels psp_dropout upsampling activation aux_params pooling dropout
aux_loss aux_logits zero_init_residual replace_stride_with_dilation transform_input
groups width_per_group width_mult stochastic_depth_prob attention_dropout
stride output_stride out_channels features_only out_indices channels channel_multiplier
width widths width_factor depth depths layers dims embed_dim embed_dims hidden_dim num_features
cardinality base_width stem_type stem_width stem_size avg_down bottle_ratio expand_ratio
num_heads num_layers num_blocks head_dim patch_size window_size mlp_ratio mlp_ratios mlp_dim
qkv_bias qk_norm init_values ls_init_value layer_scale class_token reg_tokens no_embed_class
pre_norm final_norm fc_norm dynamic_img_size dynamic_img_pad strict_img_size
global_pool act_layer norm_layer aa_layer pad_type se_ratio kernel_size kernel_sizes
drop_rate drop_path_rate drop_block_rate attn_drop_rate proj_drop_rate pos_drop_rate
"""
_ARCHITECTURE = frozenset(_ARCHITECTURE_WORDS.split())
_WORD = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127})?")
_DEEPEST = 4


def is_class_path(name: str) -> bool:
    """Return whether an extractor's name is a class path, such as ``package.module.Class``."""
    return "." in name and ":" not in name


def construct(path: str, args: Mapping[str, Any], num_classes: int | None = None) -> nn.Module:
    """Make a module from the path of its class, or of a function that makes it.

    Args:
        path: ``package.module.Class``.
        args: Arguments of the constructor. For torchvision, timm and
            segmentation-models-pytorch, weights are fetched only where they ask for it.
        num_classes: Value of a parameter ``num_classes`` or ``classes`` that is not in `args`.
    """
    factory = _import(path)
    try:
        parameters: Collection[str] = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        parameters = ()  # a builtin without a signature
    usual: dict[str, Any] = {}
    if path.split(".")[0] in _LIBRARIES:
        # torchvision adds a second classifier on its own where it fetches weights.
        usual |= {**DOWNLOADS, "aux_loss": False}
    if num_classes is not None and not any(name in args for name in _CLASSES):
        usual |= dict.fromkeys(_CLASSES, num_classes)
    filled = {**{name: v for name, v in usual.items() if name in parameters}, **args}
    try:
        module = factory(**filled)
    except SpiritsegError:
        raise
    except OSError as error:
        raise WeightsError(
            f"{path} cannot get the weights that its args ask for ({filled}): {error}. Leave "
            "them out of args, and pass a file's path as extractor.weights."
        ) from error
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be made with {filled}: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{path}: expected an nn.Module, got {type(module).__name__}.")
    return module


def is_library_network(path: str) -> bool:
    """Return whether a class path names a network that may be made without trust.

    These are torchvision's and timm's registered models, by ``torchvision.models.NAME``,
    ``torchvision.models.segmentation.NAME`` and ``timm.models.NAME``, and the classes of
    ``segmentation_models_pytorch.NAME``. Anything else in these packages is not: they hold
    functions that download, write and unpickle files. No other package is imported.
    """
    module, _, name = path.rpartition(".")
    if module in ("torchvision.models", "torchvision.models.segmentation"):
        from torchvision.models import list_models

        return name in list_models(_module(module, path))
    if module == "timm.models":
        import timm

        return bool(timm.is_model(name))
    if module == _SMP:
        found = getattr(_module(_SMP, path), name, None)
        return isinstance(found, type) and issubclass(found, nn.Module)
    return False


def untrusted_argument(args: Mapping[str, Any]) -> str:
    """Return the first argument that needs trust, and its value; empty if none does.

    Without trust: arguments that describe an architecture, as numbers up to `MAX_CHANNELS`,
    booleans, None, words (letters, digits, ``_ . + -``) that are no file's name, or lists and
    mappings of these; and those of `DOWNLOADS` with the value that fetches nothing.
    """
    for name, value in args.items():
        if name in DOWNLOADS and value is DOWNLOADS[name]:
            continue
        most = 2**63 if name == "seed" else MAX_CHANNELS
        if name not in _ARCHITECTURE or not _is_harmless(value, most):
            return f"{name}={reprlib.repr(value)}"
    return ""


def _is_harmless(value: Any, most: int, depth: int = 0) -> bool:
    if value is None or isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return abs(value) <= most  # NaN is not
    if isinstance(value, str):
        return bool(_WORD.fullmatch(value)) and not Path(value).is_file()
    if isinstance(value, Mapping):
        known = _ARCHITECTURE.issuperset(value)
        return known and _is_harmless([*value.values()], most, depth)
    if depth == _DEEPEST or not isinstance(value, list | tuple):
        return False
    return all(_is_harmless(one, most, depth + 1) for one in value)


def _import(path: str) -> Any:
    module_name, _, name = path.rpartition(".")
    try:
        module = _module(module_name, path)
        return getattr(module, name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        choices = ""
        if isinstance(error, AttributeError) and module_name.split(".")[0] in _LIBRARIES:
            names = [n for n in dir(module) if not n.startswith("_")]
            choices = " " + unknown("name", name, names)
        raise ConfigError(
            f"cannot import the network {path!r}: {error}.{choices} Expected "
            "package.module.Class, importable from where Python runs (PYTHONPATH)."
        ) from error


def _module(name: str, path: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == _SMP:
            raise MissingExtraError(
                f"{path} comes from segmentation-models-pytorch, which is not installed. "
                "Run: pip install 'spiritseg[smp]'"
            ) from error
        raise


def _load_file(module: nn.Module, request: Request, weights: str) -> None:
    if not is_file(weights):
        raise WeightsError(
            f"{request.name}: expected the path of a .pth or .safetensors file as weights, or "
            f"random, got {weights!r}. A library's own weights go into args: weights_backbone of "
            "torchvision, encoder_weights of segmentation-models-pytorch."
        )
    fit_weights(module, read_weights(weights), weights, lambda k: k.startswith("aux_classifier."))


def _build(request: Request) -> Segmenter:
    """Make a network from its class path: whole if its own head is wanted, else its trunk.

    A `Segmenter` (`WholeNetwork` with another normalisation, for instance) is taken as it is.
    """
    path, cut_at = request.name, request.cut_at
    if request.strides:
        raise ConfigError(
            f"extractor.strides: {path} is given by its class and takes no strides, got "
            f"{list(request.strides)}. Cut it at a layer (cut_at), or in its constructor (args)."
        )
    module = construct(path, request.args, request.num_classes)
    if request.weights is not None:
        _load_file(module, request, request.weights)
    if isinstance(module, Segmenter):
        if cut_at:
            raise ConfigError(
                f"extractor.cut_at: {path} is a Segmenter, which defines its feature map itself, "
                f"got {cut_at!r}. Leave it empty."
            )
        return module
    if request.num_classes is not None:
        return WholeNetwork(module, cut_at)
    if not cut_at:
        return Segmenter(module, None)
    extractor = WholeExtractor(module, cut_at)
    extractor.drop_rest()
    return Segmenter(extractor, None)


def _trained_head(extractor: config.Extractor) -> bool:
    asked = {name for name, value in extractor.args.items() if value}
    # The weights of a backbone, an encoder or a trunk leave the head untrained.
    whole = {n for n in asked if not re.search("backbone|encoder|trunk", n) and "weights" in n}
    return extractor.weights != "random" or "pretrained" in asked or bool(whole)


CLASS_PATH = Source(
    help="package.module.Class, a module of your own, or any network of torchvision, timm or "
    "segmentation-models-pytorch",
    build=_build,
    trained_head=_trained_head,
    needs_trust=lambda path: not is_library_network(path),
)
