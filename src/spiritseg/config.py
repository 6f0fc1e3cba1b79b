"""What an experiment is made of: frozen, typed, one dataclass a concept.

An `Experiment` names its networks, its images and its stages. A recipe is an
experiment on disk: a YAML file of these fields. `load_experiment` (in
`spiritseg.recipes`) reads one, lays overrides over it and checks it.

The field descriptions below are the help of the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "MAX_CHANNELS",
    "CrossEntropy",
    "Evaluation",
    "Experiment",
    "Extractor",
    "Head",
    "Holistic",
    "Input",
    "Losses",
    "Mimicry",
    "Network",
    "Optimizer",
    "Pairwise",
    "Pixelwise",
    "Proximity",
    "Scenes",
    "Stage",
    "Target",
    "Trainer",
]

MAX_CHANNELS = 16_384  # of a layer; no segmentation network comes near it

Convolution = Literal["dense", "grouped", "separable"]
Policy = Literal["spatial", "all", "separable"]


@dataclass(frozen=True)
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

    train: int = 64
    val: int = 32
    test: int = 96
    size: tuple[int, int] = (288, 384)
    train_shadows: bool = False
    test_shadows: bool = True
    seed: int = 0


@dataclass(frozen=True)
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
    root: str | None = None
    classes: str = "road"
    subset: str = "first:64"
    val: str = "auto"
    test: str = "auto"
    split_seed: int = 0
    scenes: Scenes = field(default_factory=Scenes)


@dataclass(frozen=True)
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
    root: str | list[str] | None = None
    subset: str = "all"
    held_out: float = 0.125
    scenes: Scenes = field(
        default_factory=lambda: Scenes(train=128, val=16, train_shadows=True, seed=1)
    )


@dataclass(frozen=True)
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

    crop: int = 256
    flip: float = 0.5
    scale: tuple[float, float] = (1.0, 1.0)
    jitter: float = 0.0
    pool: int = 2
    cache_mib: int = 2048
    skip_bad: bool = False


@dataclass(frozen=True)
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
    of: str | None = None
    weights: str = "random"
    split: str = ""
    strides: tuple[int, ...] = ()
    policy: Policy = "spatial"
    project: int = 0
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Head:
    """Where a network's logits come from.

    Args:
        name: student (Table V), pyramid (PSPNet's pooling at 1, 2, 3 and 6 bins, then a
            classifier), own (the network's own), or none.
        channels: width of the head, 1 to 16384.
        convolution: of the student head: grouped (Table V, groups = gcd), separable or
            dense.
    """

    name: str = "student"
    channels: int = 64
    convolution: Convolution = "separable"


@dataclass(frozen=True)
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
    bundle: str | None = None
    trust: bool = False


@dataclass(frozen=True)
class Optimizer:
    """How a stage steps.

    Args:
        name: sgd, adam or adamw.
        lr: learning rate; for one_cycle the highest one.
        momentum: of sgd; the first beta of adam and adamw is 0.9.
        weight_decay: L2 penalty (decoupled with adamw).
        schedule: constant, one_cycle, or poly (power 0.9).
        warmup: share of the steps in which one_cycle rises.
    """

    name: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Literal["constant", "one_cycle", "poly"] = "one_cycle"
    warmup: float = 0.3


@dataclass(frozen=True)
class CrossEntropy:
    """Supervised cross-entropy (SD, eq. 3).

    Args:
        weight: factor of the loss in the stage's sum.
        class_weights: factor of the pixels of a class, by its name, such as {road: 2}; 1 for
            classes that are left out. Only the ratios between pixels count.
        boundary: what is added to the factor 1 of pixels near another class; 0 for nothing.
        boundary_width: how near, in pixels of the prediction.
    """

    weight: float = 1.0
    class_weights: dict[str, float] = field(default_factory=dict)
    boundary: float = 0.0
    boundary_width: int = 2


@dataclass(frozen=True)
class Mimicry:
    """Squared error between feature maps (SD, eq. 2).

    Args:
        weight: factor of the loss in the stage's sum.
        reduction: channel_sum (sum over channels, mean over positions: the paper) or
            mean (mean over channels too).
        normalise: divide the teacher's features by their standard deviation per
            channel, computed once over the training images.
        centre: subtract their mean per channel as well; for a student that ends
            linearly. It needs normalise.
        layers: which layer of the student mimics which of the teacher, as module paths
            (extractor.module.stages.1); features is the extractor's output, and the
            default. Several pairs are averaged. Where channels differ, a 1x1 adapter is
            trained beside the student and dropped afterwards.
    """

    weight: float = 1.0
    reduction: Literal["channel_sum", "mean"] = "channel_sum"
    normalise: bool = False
    centre: bool = False
    layers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pixelwise:
    """Divergence between the class distributions of each pixel (SKD, eq. 1).

    Args:
        weight: factor of the loss in the stage's sum.
        temperature: divides the logits of both.
        direction: teacher_student for KL(teacher || student), or student_teacher, the
            paper's letter.
        reduction: mean over pixels and images, or batch_sum: summed over the batch,
            divided by the pixels of one image (the released code).
        confidence: pixels where the teacher's highest probability is lower are left out; on
            several devices each divides by its own count of pixels.
    """

    weight: float = 1.0
    temperature: float = 1.0
    direction: Literal["teacher_student", "student_teacher"] = "teacher_student"
    reduction: Literal["mean", "batch_sum"] = "mean"
    confidence: float = 0.0


@dataclass(frozen=True)
class Pairwise:
    """Difference between the similarities of nodes (SKD, eqs. 2 and 3).

    Args:
        weight: factor of the loss in the stage's sum.
        node_size: side of a node in positions of the teacher's grid; below 1, its share
            of the grid's sides.
        connection_range: how many nearest nodes each node is compared with; 0 for all.
        form: direct, linear, or auto: the cheaper one.
        pooling: average (the paper) or max (the released code) over a node's positions.
        detach_norms: keep the gradient out of the norms (the released code).
        layers: which layer of the student is compared with which of the teacher, as
            module paths; features is the extractor's output, and the default.
    """

    weight: float = 1.0
    node_size: float = 1.0
    connection_range: int = 0
    form: Literal["auto", "direct", "linear"] = "auto"
    pooling: Literal["average", "max"] = "average"
    detach_norms: bool = False
    layers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Holistic:
    """A critic that tells the student's segmentation maps from the teacher's (SKD, eq. 4).

    Args:
        weight: factor of the loss in the stage's sum.
        kind: wgan-gp (the paper) or hinge.
        maps: what the critic sees: probabilities or logits (the released code).
        conditioned: whether it sees the image too (the paper).
        spectral_norm: normalise the critic's weights (the released code).
        width: channels of its first convolution.
        gradient_penalty: factor of the penalty on the critic's slope; 0 leaves it out.
        limit: size of the critic's loss at which it counts as diverged.
        optimizer: how the critic steps, once a step of the student.
    """

    weight: float = 0.1
    kind: Literal["wgan-gp", "hinge"] = "wgan-gp"
    maps: Literal["probabilities", "logits"] = "probabilities"
    conditioned: bool = True
    spectral_norm: bool = False
    width: int = 64
    gradient_penalty: float = 10.0
    limit: float = 1e4
    optimizer: Optimizer = field(
        default_factory=lambda: Optimizer("adam", lr=4e-4, schedule="constant")
    )


@dataclass(frozen=True)
class Losses:
    """The losses of a stage; one that is left out is not computed.

    Args:
        cross_entropy: against the labels.
        mimicry: against the teacher's features.
        pixelwise: against the teacher's class distributions.
        pairwise: against the similarities between the teacher's features.
        holistic: against the teacher's segmentation maps, as a critic sees them.
    """

    cross_entropy: CrossEntropy | None = None
    mimicry: Mimicry | None = None
    pixelwise: Pixelwise | None = None
    pairwise: Pairwise | None = None
    holistic: Holistic | None = None


@dataclass(frozen=True)
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
    teacher: str | None = None
    co_teachers: tuple[str, ...] = ()
    teacher_view: Literal["same", "plain"] = "same"
    images: Literal["target", "target+proximity", "proximity"] = "target"
    ratio: float = 0.5
    jitter: float | None = None
    scale: tuple[float, float] | None = None
    fourier: float = 0.0
    losses: Losses = field(default_factory=Losses)
    optimizer: Optimizer = field(default_factory=Optimizer)
    batch_size: int = 8
    max_steps: int = 300
    max_epochs: int = 0
    patience: int = 0
    min_delta: float = 1e-4
    views: int = 0
    cache_mib: int = 1024
    average: float = 0.0


@dataclass(frozen=True)
class Evaluation:
    """How the result is measured.

    Args:
        threshold: mIOU above which an image counts for HP-Acc.
        batch_size: images at once; of these, images of one size go together.
        latency: whether latency is measured.
        pictures: test images drawn in predictions.png; 0 for none.
    """

    threshold: float = 0.75
    batch_size: int = 8
    latency: bool = True
    pictures: int = 4


@dataclass(frozen=True)
class Trainer:
    """On what machine, and how exactly; handed on to the Lightning Trainer.

    Args:
        accelerator: auto, cpu, gpu or any other of Lightning's.
        devices: how many devices, or auto.
        num_nodes: machines of a distributed run.
        strategy: auto, ddp or any other of Lightning's.
        precision: 32-true, 16-mixed, bf16-mixed ...
        sync_batchnorm: whether batch norms of several GPUs take the statistics of all their images;
            without it each device normalises by its own, so that two devices differ from one.
        channels_last: memory format of images and weights; faster on most machines.
        compile: compile the network that is trained with torch.compile.
        workers: processes that load images; 0 loads them in the training process.
        checkpoint_every_s: least seconds between two checkpoints within a stage.
        log_every_steps: steps between two lines of the logs.
        progress: whether progress bars are drawn.
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    sync_batchnorm: bool = False
    channels_last: bool = True
    compile: bool = False
    workers: int = 0
    checkpoint_every_s: float = 20.0
    log_every_steps: int = 5
    progress: bool = True


@dataclass(frozen=True)
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
    networks: dict[str, Network] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    result: str = "student"
    evaluation: Evaluation = field(default_factory=Evaluation)
    trainer: Trainer = field(default_factory=Trainer)
