"""The fields of an experiment: frozen dataclasses, typed and validated by pydantic.

An `Experiment` names its networks, its images and its stages. A recipe is an
experiment on disk: a YAML file of these fields. `load_experiment` (in
`spiritseg.recipes`) reads one, applies overrides and checks it.

The descriptions below are the help of the command line.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from spiritseg.options import (
    MAX_CHANNELS,
    STRICT,
    Mapping_,
    Nullable,
    Optimizer,
    Pair,
    Share,
    ShareBelowOne,
    Words,
    renamed,
    without_nulls,
)

__all__ = [
    "MAX_CHANNELS",
    "Evaluation",
    "Experiment",
    "Extractor",
    "Head",
    "Input",
    "Network",
    "Optimizer",
    "Proximity",
    "Scenes",
    "Stage",
    "Target",
    "Trainer",
]

Convolution = Literal["dense", "grouped", "separable"]
Policy = Literal["spatial", "all", "separable"]

Count = Annotated[int, Ge(0)]
Positive = Annotated[int, Ge(1)]
Text = Annotated[str | None, Nullable]


def _rising(pair: tuple[float, float]) -> tuple[float, float]:
    if not 0 < pair[0] <= pair[1]:
        raise ValueError("0 < low <= high")
    return pair


Named = BeforeValidator(without_nulls)  # a name set to null takes an inherited entry out


def _losses(value: Any) -> Any:
    """Build the options of the losses, whose registry loads torch."""
    from spiritseg.losses import read_losses

    return read_losses(value)


Scale = Annotated[Pair, AfterValidator(_rising)]


@dataclass(frozen=True, config=STRICT)
class Scenes:
    """Embedded data set: procedural road scenes, nothing to download.

    Args:
        train: Number of labelled training scenes.
        val: Number of validation scenes.
        test: Number of test scenes.
        size: Height and width of a scene in pixels.
        train_shadows: Whether the training scenes have cast shadows.
        test_shadows: Whether the validation and test scenes have cast shadows.
        seed: Random seed; a scene is a function of (seed, split, index).
    """

    train: Positive = 64
    val: Count = 32
    test: Count = 96
    size: Annotated[tuple[int, int], Words] = (288, 384)
    train_shadows: bool = False
    test_shadows: bool = True
    seed: int = 0


@dataclass(frozen=True, config=STRICT)
class Target:
    """Labelled images: those that train, and those that the student is measured on.

    Args:
        dataset: Layout of the folder: auto (the one that the root has), a name of
            spiritseg.data.LAYOUTS (camvid, folder, scenes ...), or path/to/file.py:NAME.
        root: Folder of the data set.
        classes: road (road against background), all (the data set's classes), or
            the path of a class-map YAML.
        subset: Training images used: all, first:N by sorted name, even:N
            evenly spaced by sorted name, or list:FILE with one name per line.
        val: Validation images of a folder data set: auto (folder val/,
            or val/ within images/ and masks/, if there is one, else fraction:0.1),
            folder:DIR, list:FILE, or fraction:F of the images, drawn by split_seed.
        test: Test images of a folder data set, in the same form.
        split_seed: Random seed of the fractions, independent of the experiment's
            seed, so that all seeds are measured on the same images.
        scenes: Settings of the embedded data set, for dataset scenes.
    """

    dataset: str = "auto"
    root: Text = None
    classes: str = "road"
    subset: str = "first:64"
    val: str = "auto"
    test: str = "auto"
    split_seed: int = 0
    scenes: Scenes = field(default_factory=Scenes)


@dataclass(frozen=True, config=STRICT)
class Proximity:
    """Unlabelled images of a similar domain.

    Args:
        dataset: folder (any folders of images, nested ones too), scenes (embedded), or
            auto: folder if a root is given, else none.
        root: Folder of images, or a list of folders.
        subset: Images used: all, first:N, even:N or list:FILE.
        held_out: Share of the images kept out of training, for the explained
            variance of mimicry.
        scenes: Settings of the embedded data set; its training scenes are used without labels.
    """

    dataset: Literal["auto", "folder", "scenes"] = "auto"
    root: Annotated[str | list[str] | None, Nullable] = None
    subset: str = "all"
    held_out: ShareBelowOne = 0.125
    scenes: Scenes = field(
        default_factory=lambda: Scenes(train=128, val=16, train_shadows=True, seed=1)
    )


@dataclass(frozen=True, config=STRICT)
class Input:
    """From a decoded image to the input of a network.

    Args:
        crop: Side of the random square crop in training, in pixels, before the max-pool.
        flip: Probability of a horizontal flip.
        scale: Range of a random resize before the crop; 1 1 for none.
        jitter: Strength of random brightness, contrast and saturation, 0 to 1; 0 for none.
        pool: Side of the max-pool between the image and the network (the paper: 2).
        cache_mib: Memory for decoded images, in MiB; what does not fit is decoded again.
        skip_bad: Whether unreadable images are left out and reported at the end, rather than
            stopping the run at the first.
    """

    crop: Positive = 256
    flip: Share = 0.5
    scale: Scale = (1.0, 1.0)
    jitter: Share = 0.0
    pool: Positive = 2
    cache_mib: Count = 2048
    skip_bad: bool = False


@dataclass(frozen=True, config=STRICT)
class Extractor:
    """Source of a network's features.

    Args:
        name: Pretrained network (efficientnet_lite0, vgg16, deeplabv3_resnet50,
            timm:MODEL), small one (separable), copy or compact (of another network of
            the experiment), or class path of your own module or of any network
            of torchvision, timm or segmentation-models-pytorch (with head own, its own
            logits are used; arguments go into args).
        base: For copy, compact and separable: the network whose extractor is copied or made
            compact, or whose feature map is matched.
        weights: pretrained, random, a name that the library knows (such as
            COCO_WITH_VOC_LABELS_V1), or the path of a .pth or .safetensors file.
        cut_at: Layer at which the network is cut; empty for the usual one. For a class path with
            head own: the layer whose output counts as the features.
        strides: Strides of the feature maps that are joined; empty for the usual ones.
        policy: For compact: spatial, all or separable.
        project: Channels of a final 1x1 projection; 0 for none. Small
            extractors take the channels of the network they match.
        args: Further arguments of the constructor.
    """

    name: str = "efficientnet_lite0"
    base: Text = None
    weights: str = "random"
    cut_at: str = ""
    strides: Annotated[tuple[int, ...], Words] = ()
    policy: Policy = "spatial"
    project: Annotated[int, Interval(ge=0, le=MAX_CHANNELS)] = 0
    args: Annotated[dict[str, Any], Mapping_] = field(default_factory=dict)

    _old = renamed(of="base", split="cut_at")


@dataclass(frozen=True, config=STRICT)
class Head:
    """Source of a network's logits.

    Args:
        name: student (SD, Table V), pyramid (PSPNet's pooling at 1, 2, 3 and 6 bins, then a
            classifier), own (the network's own), or none.
        channels: Width of the head.
        convolution: Of the student head: grouped (Table V, groups = gcd), separable or
            dense.
    """

    name: str = "student"
    channels: Annotated[int, Interval(ge=1, le=MAX_CHANNELS)] = 64
    convolution: Convolution = "separable"


@dataclass(frozen=True, config=STRICT)
class Network:
    """One network of an experiment: an extractor and a head, or a saved student.

    Args:
        extractor: Source of its features.
        head: Source of its logits.
        bundle: Folder of a saved network, used instead of both.
        trust: Whether your own classes that the bundle names are imported, which runs their code.
    """

    extractor: Extractor = field(default_factory=Extractor)
    head: Head = field(default_factory=Head)
    bundle: Text = None
    trust: bool = False


@dataclass(frozen=True, config=STRICT)
class Stage:
    """What trains, from which teacher, on which images, under which losses, until when.

    Args:
        network: Name of the network that trains.
        trains: Part that trains: all, extractor or head; the rest is frozen.
        teacher: Name of the network that is distilled from, if any.
        co_teachers: Further networks whose class distributions are averaged with the
            teacher's. Features and inner layers are the teacher's.
        teacher_view: Input of the teacher: same (the student's view), or plain: the same
            crop before FDA and without colour jitter (weak-to-strong consistency).
        images: target, target+proximity (mixed at the ratio), or proximity.
        ratio: Target images to proximity images, r = |Dt| : |Dp|; 0 for proximity only.
        jitter: Strength of the random colours in this stage; null for input.jitter.
        scale: Range of the random resize in this stage; null for input.scale.
        fda_prob: Probability that a view of a target image takes the low-frequency amplitudes of a
            random proximity image (FDA); 0 for none. The band is 0.01 of the crop's side:
            below 100 pixels only the means are exchanged.
        losses: Losses by name, with their options.
        optimizer: Optimizer and learning-rate schedule.
        batch_size: Images per step, over all devices.
        max_steps: Largest number of steps; 0 for no bound.
        max_epochs: Largest number of epochs; 0 for no bound.
        patience: Epochs without an improvement of the training loss after which the
            stage has converged; 0 to run to the bound.
        min_delta: Smallest decrease of the loss that counts as an improvement.
        num_views: Number of augmented views per image: epoch e uses view e modulo num_views, so
            that the outputs of frozen parts can be kept. 0 for a new view every epoch.
        cache_mib: Memory for the kept outputs of frozen parts, in MiB; 0 keeps none.
        ema_decay: Decay of the EMA of the weights, which becomes the
            stage's result; 0 for the last step's weights. After n steps the decay is
            min(ema_decay, (1 + n) / (10 + n)).
    """

    network: str = "student"
    trains: Literal["all", "extractor", "head"] = "all"
    teacher: Text = None
    co_teachers: Annotated[tuple[str, ...], Words] = ()
    teacher_view: Literal["same", "plain"] = "same"
    images: Literal["target", "target+proximity", "proximity"] = "target"
    ratio: Annotated[float, Ge(0)] = 0.5
    jitter: Annotated[Share | None, Nullable] = None
    scale: Annotated[Scale | None, Nullable] = None
    fda_prob: Share = 0.0
    losses: Annotated[dict[str, Any], BeforeValidator(_losses)] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: Positive = 8
    max_steps: Count = 300
    max_epochs: Count = 0
    patience: Count = 0
    min_delta: float = 1e-4
    num_views: Count = 0
    cache_mib: Count = 1024
    ema_decay: ShareBelowOne = 0.0

    _old = renamed(views="num_views", average="ema_decay", fourier="fda_prob")

    @property
    def needs_proximity(self) -> bool:
        """Whether the stage uses proximity images."""
        return self.images != "target" or self.fda_prob > 0


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """How the result is measured.

    Args:
        threshold: mIOU above which an image counts for HP-Acc.
        batch_size: Images per batch; only images of one size share a forward pass.
        latency: Whether latency is measured.
        pictures: Number of test images drawn in predictions.png; 0 for none.
    """

    threshold: Share = 0.75
    batch_size: Positive = 8
    latency: bool = True
    pictures: Count = 4


@dataclass(frozen=True, config=STRICT)
class Trainer:
    """Machine and numerics; passed on to the Lightning Trainer.

    Args:
        accelerator: auto, cpu, gpu or any other of Lightning's.
        devices: Number of devices, or auto.
        num_nodes: Number of machines of a distributed run.
        strategy: auto, ddp or any other of Lightning's.
        precision: 32-true, 16-mixed, bf16-mixed ...
        sync_batchnorm: Whether batch norms take their statistics over the images of all devices;
            without it each device normalises by its own, so that two devices differ from one.
        channels_last: Whether images and weights are in channels-last format, which is faster
            on most machines.
        compile: Whether the network that trains is compiled with torch.compile.
        workers: Processes that load images; 0 loads them in the training process.
        checkpoint_every_s: Shortest time between two checkpoints within a stage, in seconds.
        log_every_steps: Steps between two lines of the logs.
        progress: Whether progress bars are drawn.
    """

    accelerator: str = "auto"
    devices: Annotated[int | str, Field(union_mode="left_to_right")] = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool = False
    channels_last: bool = True
    compile: bool = False
    workers: Count = 0
    checkpoint_every_s: Annotated[float, Ge(0)] = 20.0
    log_every_steps: Positive = 5
    progress: bool = True


@dataclass(frozen=True, config=STRICT)
class Experiment:
    """Networks, images and stages: everything that decides a result, and the machine.

    Args:
        seed: Random seed of every draw: initialisation, order, augmentation, dropout.
        target: Labelled images.
        proximity: Unlabelled images of a similar domain.
        input: From a decoded image to the input of a network.
        networks: Networks by name.
        stages: Stages by name, in the order in which they run.
        result: Name of the network that is measured and saved.
        evaluation: How it is measured.
        trainer: Machine and numerics.
    """

    seed: int = 0
    target: Target = field(default_factory=Target)
    proximity: Proximity = field(default_factory=Proximity)
    input: Input = field(default_factory=Input)
    networks: Annotated[dict[str, Network], BeforeValidator(without_nulls)] = field(
        default_factory=dict
    )
    stages: Annotated[dict[str, Stage], BeforeValidator(without_nulls)] = field(
        default_factory=dict
    )
    result: str = "student"
    evaluation: Evaluation = field(default_factory=Evaluation)
    trainer: Trainer = field(default_factory=Trainer)
