"""spiritseg distill."""

from __future__ import annotations

from pathlib import Path

from spiritseg.cli.words import FIELDS, make_parser, read_words


def run(words: list[str]) -> None:
    """Train a recipe, stage by stage, and measure the result; the same command continues.

    RECIPE is a shipped name (see: spiritseg recipes) or a YAML file.
    """
    parser = make_parser("distill", run)
    parser.epilog = FIELDS
    parser.add_argument("recipe", help="a shipped recipe or a .yaml file")
    parser.add_argument("--run-dir", help="default: runs/RECIPE-HASH_OF_THE_CONFIG")
    parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out")
    parser.add_argument("--print_config", action="store_true", help="print the recipe and stop")
    parser.add_argument("--help-all", action="store_true", help="every field of the recipe")
    asked = {"-h", "--help", "--help-all"} & set(words)
    if asked:
        parser.print_help()
        if not words[0].startswith("-"):
            from spiritseg.recipes import load_experiment
            from spiritseg.recipes.describe import describe

            experiment = load_experiment(words[0], complete=False)
            print("\n" + describe(experiment, everything="--help-all" in asked))
        return
    options, overrides = read_words(parser, words)
    if options.skip_bad:
        overrides["input.skip_bad"] = True
    from spiritseg.recipes import load_experiment, to_yaml

    experiment = load_experiment(options.recipe, overrides, complete=not options.print_config)
    if options.print_config:
        print(to_yaml(experiment), end="")
        return
    from spiritseg.tables import class_table, metrics_table, print_notes, print_table
    from spiritseg.training.run import default_run_dir, distill
    from spiritseg.training.run_folder import is_first_process

    run_dir = Path(options.run_dir or default_run_dir(experiment, Path(options.recipe).stem))
    was_finished = (run_dir / "metrics.json").exists()
    result = distill(experiment, run_dir)
    if not is_first_process():
        return
    if was_finished:
        print(f"{run_dir} was finished before; to train anew, choose another --run-dir.")
    print_table(metrics_table({result.run_dir.name: result.metrics}))
    if len(result.metrics["test"]["IoU"]) > 2:
        print_table(class_table(result.metrics["test"]))
    print_notes(result.metrics)
    print(f"test images: {result.metrics['test']['images']}")
    print(f"student: {result.run_dir / 'student'}")
