"""The known data sets: where each keeps its images and masks, its splits and its classes.

`LAYOUTS` has one entry per data set. Your own: a `SplitLayout` (or a subclass of `Layout`) in a
Python file, named in a recipe as ``target.dataset: path/to/file.py:NAME``, or in an installed
package under the entry point group ``spiritseg.layouts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spiritseg.config import Proximity, Scenes, Target
from spiritseg.data.class_map import ClassMap, named
from spiritseg.data.items import ScenePair, need_folder, what_is_in
from spiritseg.data.layout_kinds import FolderLayout, Layout, SplitLayout
from spiritseg.data.subsets import choose
from spiritseg.errors import ConfigError, DataError
from spiritseg.randomness import derive_seed
from spiritseg.registry import Registry

__all__ = ["LAYOUTS", "detect", "needs_root"]


class SceneLayout(Layout):
    """The embedded procedural road scenes, with CamVid's classes."""

    help = "embedded, needs no root"
    needs_root = False

    def detect(self, root: Path) -> bool:
        """Return False: no folder holds them."""
        return False

    def items(
        self, target: Target, root: Path | None, wanted: Sequence[str]
    ) -> dict[str, list[ScenePair]]:
        """List the scenes of splits; each split is a world of its own."""
        found = {split: _scenes(target.scenes, split) for split in wanted}
        default = int(Target.subset.removeprefix("first:"))
        # The default subset is meant for files: it must not refuse a smaller embedded set.
        small = target.subset == Target.subset and target.scenes.train < default
        if "train" in found and not small:
            found["train"] = choose(found["train"], target.subset, "target.subset")
        return found

    def class_map(self, root: Path | None, classes: str) -> ClassMap:
        """Return CamVid's classes, or road against background."""
        return named("camvid").road() if classes == "road" else named("camvid")

    def unlabelled(self, proximity: Proximity) -> list[ScenePair]:
        """List the scenes of the proximity domain."""
        return _scenes(proximity.scenes, "proximity")


LAYOUTS: Registry[Layout] = Registry("data set", "spiritseg.layouts", Layout)
LAYOUTS.register(
    "camvid",
    SplitLayout(
        images="{split}",
        masks="{split}annot",
        splits={"train": "train", "val": "val", "test": "test"},
        classes="camvid",
    ),
)
LAYOUTS.register(
    "cityscapes",
    SplitLayout(
        images="leftImg8bit/{split}",
        masks="gtFine/{split}",
        splits={"train": "train", "test": "val"},
        classes="cityscapes",
        image_end="_leftImg8bit",
        mask_end="_gtFine_labelIds",
    ),
)
LAYOUTS.register(
    "ade20k",
    SplitLayout(
        images="images/{split}",
        masks="annotations/{split}",
        splits={"train": "training", "test": "validation"},
        classes="ade20k",
    ),
)
LAYOUTS.register("folder", FolderLayout())
LAYOUTS.register("scenes", SceneLayout())


def detect(root: Path) -> str:
    """Return the name of the first layout in `LAYOUTS` that a folder has.

    Raises:
        DataError: if it has none; with the known layouts and what was found.
    """
    if name := _detected(need_folder(root, "target.root")):
        return name
    inner = [path for path in sorted(root.iterdir()) if path.is_dir() and _detected(path)]
    hint = f" Did you mean {inner[0]}?" if inner else ""
    known = ", ".join(f"{name} ({one.help})" for name, one in LAYOUTS.items() if one.needs_root)
    raise DataError(
        f"target.root {root} has no known layout. Expected one of: {known}. "
        f"{what_is_in(root)}{hint}"
    )


def needs_root(dataset: str) -> bool:
    """Whether a data set by this name (auto, or of `LAYOUTS`) lies in a folder."""
    return dataset == "auto" or LAYOUTS[dataset].needs_root


def _detected(root: Path) -> str | None:
    return next((name for name, layout in LAYOUTS.items() if layout.detect(root)), None)


def _scenes(scenes: Scenes, part: str) -> list[ScenePair]:
    """List the scenes of train, val, test or proximity; each part is a world of its own."""
    from spiritseg.scenes import STYLES

    counts = {"train": scenes.train, "val": scenes.val, "test": scenes.test}
    count = counts.get(part, scenes.train)
    if count < 1:
        raise ConfigError(f"scenes.{part}: expected 1 or more scenes, got {count}")
    style = STYLES[{"train": "target", "proximity": "proximity"}.get(part, "test")]
    shadows = scenes.train_shadows if part in ("train", "proximity") else scenes.test_shadows
    style = replace(style, shadows=shadows)
    seed = derive_seed("scenes", scenes.seed, part)
    return [
        ScenePair(f"{part}/{index:05d}", seed, index, scenes.size, style) for index in range(count)
    ]
