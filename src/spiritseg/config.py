"""What an experiment is made of: frozen, typed, one dataclass a concept.

An `Experiment` names its networks, its images and its stages. A recipe is an
experiment on disk: a YAML file of these fields. `load_experiment` (in
`spiritseg.recipes`) reads one, lays overrides over it and checks it.

The field descriptions below are the help of the command line.
"""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from spiritseg.options import (
    STRICT,
    Mapping_,
    Nullable,
    Optimizer,
    Pair,
    Share,
    ShareBelowOne,
    Words,
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

MAX_CHANNELS = 16_384  # of a layer; no segmentation network comes near it

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
    """The embedded data set: procedural road scenes, nothing to download.

    Args:
        train: number of labelled training scenes.
        val: number of validation scenes.
        test: number of test scenes.
        size: height and width of a scene in pixels.
        train_shadows: whether cast shadows lie on the training scenes.
        test_shadows: whether cast shadows lie on the validation and test scenes.
        seed: which world; scenes are a function of (seed, split, index).
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
    """The labelled images, and the images that the student is measured on.

    Args:
        dataset: camvid, cityscapes, ade20k, folder (images/ and masks/), scenes
            (embedded, needs no root), or auto: whichever layout the root has.
        root: folder of the data set.
        classes: road (road against background), all (the data set's classes), or
            the path of a class-map YAML.
        subset: training images that are used: all, first:N by sorted name, even:N
            evenly spaced by sorted name, or list:FILE with one name a line.
        val: where validation images come from in a folder data set: auto (folder val/,
            or val/ within images/ and masks/, if there is one, else fraction:0.1),
            folder:DIR, list:FILE, or fraction:F of the images, drawn by split_seed.
        test: the same for test images.
        split_seed: seed of the fraction draws; it is apart from the experiment's
            seed, so that all seeds are measured on the same images.
        scenes: the embedded data set, where dataset is scenes.
    """

    dataset: Literal["auto", "camvid", "cityscapes", "ade20k", "folder", "scenes"] = "auto"
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
            auto: folder where a root is given, none otherwise.
        root: folder of images, or a list of folders.
        subset: images that are used: all, first:N, even:N or list:FILE.
        held_out: share of the images that is kept out of training, for the explained
            variance of mimicry.
        scenes: the embedded data set; its training scenes serve, without labels.
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
    """From a decoded image to what a network sees.

    Args:
        crop: side of the random square crop of training, in pixels, before the pool.
        flip: probability of a horizontal flip.
        scale: range of a random resize before the crop; 1 1 leaves it out.
        jitter: strength of random brightness, contrast and saturation, 0 to 1; 0 leaves
            it out.
        pool: side of the max-pool between the image and the network (the paper: 2).
        cache_mib: memory for decoded images; what does not fit is decoded again.
        skip_bad: leave unreadable images out and report them at the end, rather than
            stop at the first.
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
    """Where a network's features come from.

    Args:
        name: a pretrained network (efficientnet_lite0, vgg16, deeplabv3_resnet50,
            timm:MODEL), a small one (separable), copy or compact (of another network of
            the experiment), or the class path of your own module or of any network
            of torchvision, timm or segmentation-models-pytorch (with head own, its own
            logits are taken; arguments go into args).
        of: for copy, compact and separable: the network whose extractor is copied, made
            compact, or whose feature map is matched.
        weights: pretrained, random, a name of the library's own (such as
            COCO_WITH_VOC_LABELS_V1), or the path of a .pth or .safetensors file.
        split: where the network is cut; empty for its usual place. For a class path with
            head own: the layer whose output counts as the features.
        strides: strides of the feature maps that are joined; empty for the usual ones.
        policy: for compact: spatial, all or separable.
        project: channels of a final 1x1 projection, at most 16384; 0 for none. Small
            extractors take the channels of the network they match.
        args: further arguments of the constructor.
    """

    name: str = "efficientnet_lite0"
    of: Text = None
    weights: str = "random"
    split: str = ""
    strides: Annotated[tuple[int, ...], Words] = ()
    policy: Policy = "spatial"
    project: Annotated[int, Interval(ge=0, le=MAX_CHANNELS)] = 0
    args: Annotated[dict[str, Any], Mapping_] = field(default_factory=dict)


@dataclass(frozen=True, config=STRICT)
class Head:
    """Where a network's logits come from.

    Args:
        name: student (Table V), pyramid (PSPNet's pooling at 1, 2, 3 and 6 bins, then a
            classifier), own (the network's own), or none.
        channels: width of the head, 1 to 16384.
        convolution: of the student head: grouped (Table V, groups = gcd), separable or
            dense.
    """

    name: Literal["student", "pyramid", "own", "none"] = "student"
    channels: Annotated[int, Interval(ge=1, le=MAX_CHANNELS)] = 64
    convolution: Convolution = "separable"


@dataclass(frozen=True, config=STRICT)
class Network:
    """One network of an experiment: an extractor and a head, or a saved student.

    Args:
        extractor: where its features come from.
        head: where its logits come from.
        bundle: folder of a saved network, taken instead of both.
        trust: import your own classes that the bundle names, which runs their code.
    """

    extractor: Extractor = field(default_factory=Extractor)
    head: Head = field(default_factory=Head)
    bundle: Text = None
    trust: bool = False


@dataclass(frozen=True, config=STRICT)
class Stage:
    """What trains, from which teacher, on which images, under which losses, until when.

    Args:
        network: name of the network that trains.
        trains: all, or only its extractor or its head; the rest is frozen.
        teacher: name of the network that is distilled from, if any.
        co_teachers: further networks; their class distributions are averaged with the
            teacher's. Features and inner layers stay the teacher's.
        teacher_view: what the teacher sees: same (the student's view), or plain: the same
            crop before fourier and without colour jitter, so that its answer is surer than
            the student's image makes it (weak-to-strong consistency).
        images: target, target+proximity (mixed at the ratio), or proximity.
        ratio: target images to proximity images, r = |Dt| : |Dp|; 0 for proximity only.
        jitter: strength of the random colours in this stage; null for input.jitter.
        scale: range of the random resize in this stage; null for input.scale.
        fourier: share of the views of target images that take the light and colours of a
            random proximity image, by its low-frequency amplitudes (FDA); 0 for none. The
            band is fixed at 0.01 of the crop's side: below 100 pixels the means alone are
            exchanged.
        losses: the losses.
        optimizer: how it steps.
        batch_size: images a step, over all devices.
        max_steps: steps at the most; 0 for no bound.
        max_epochs: epochs at the most; 0 for no bound.
        patience: epochs without an improvement of the training loss after which the
            stage has converged; 0 to run to the bound.
        min_delta: the least change of the loss that counts as an improvement.
        views: augmented views of each image: epoch e shows view e modulo views, so that
            the features of frozen parts can be kept. 0 for a new view every epoch.
        cache_mib: memory for the kept features of frozen parts; 0 keeps none.
        average: decay of the moving average of the weights over the steps, which becomes the
            stage's result; 0 for the last step's weights. The decay rises to it over the first
            steps: min(average, (1 + n) / (10 + n)).
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
    fourier: Share = 0.0
    losses: Annotated[dict[str, Any], BeforeValidator(_losses)] = field(default_factory=dict)
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: Positive = 8
    max_steps: Count = 300
    max_epochs: Count = 0
    patience: Count = 0
    min_delta: float = 1e-4
    views: Count = 0
    cache_mib: Count = 1024
    average: ShareBelowOne = 0.0


@dataclass(frozen=True, config=STRICT)
class Evaluation:
    """How the result is measured.

    Args:
        threshold: mIOU above which an image counts for HP-Acc.
        batch_size: images at once; of these, images of one size go together.
        latency: whether latency is measured.
        pictures: test images drawn in predictions.png; 0 for none.
    """

    threshold: Share = 0.75
    batch_size: Positive = 8
    latency: bool = True
    pictures: Count = 4


@dataclass(frozen=True, config=STRICT)
class Trainer:
    """On what machine, and how exactly; handed on to the Lightning Trainer.

    Args:
        accelerator: auto, cpu, gpu or any other of Lightning's.
        devices: how many devices, or auto.
        num_nodes: machines of a distributed run.
        strategy: auto, ddp or any other of Lightning's.
        precision: 32-true, 16-mixed, bf16-mixed ...
        sync_batchnorm: Whether batch norms take their statistics over the images of all devices;
            without it each device normalises by its own, so that two devices differ from one.
        channels_last: memory format of images and weights; faster on most machines.
        compile: compile the network that is trained with torch.compile.
        workers: processes that load images; 0 loads them in the training process.
        checkpoint_every_s: least seconds between two checkpoints within a stage.
        log_every_steps: steps between two lines of the logs.
        progress: whether progress bars are drawn.
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
        seed: seed of every draw: weights, order, augmentation, dropout.
        target: the labelled images.
        proximity: the unlabelled images of a similar domain.
        input: from a decoded image to what a network sees.
        networks: the networks by name.
        stages: the stages by name, in the order in which they run.
        result: name of the network that is measured and saved.
        evaluation: how it is measured.
        trainer: on what machine.
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
