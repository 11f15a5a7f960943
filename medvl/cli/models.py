"""The commands that make, judge and use models, and the phantoms to try them on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from medvl.cli.basis import Verbs, progress, show, verb, write
from medvl.errors import UsageError
from medvl.recipes import default
from medvl.verbs import MODALITIES


def add_modality_verbs(verbs: Verbs, modality: str) -> None:
    """Add ``medvl MODALITY train`` and ``demo``."""
    usual = default(modality)
    train = verb(verbs, "train", "train a model on a record store", _train)
    train.add_argument("data", type=Path, nargs="?", help="the record store")
    train.add_argument("out", type=Path, nargs="?", help="the run to write; an interrupted one is resumed")
    train.add_argument("--recipe", default=usual, help=f"a recipe's name or a YAML file ({usual})")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="override any value: schedule.epochs=50 (repeatable)",
    )
    train.add_argument("--print-recipe", action="store_true", help="show the resolved recipe and stop")
    train.set_defaults(modality=modality)

    demo = verb(verbs, "demo", "the whole road on phantoms, ends with an HTML page", _demo)
    demo.add_argument("out", type=Path, nargs="?", default=Path("medvl-demo"))
    demo.add_argument("--n", type=int, help="phantom studies")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(modality=modality)


def add_verbs(top: Verbs) -> None:
    """Add the commands that ask a store, a run or a bundle for its modality."""
    evaluate = verb(top, "evaluate", "retrieval, zero-shot and grounding: table, figures, JSON", _evaluate)
    evaluate.add_argument("model", type=Path, help="a run or a bundle")
    evaluate.add_argument("data", type=Path, help="a record store")
    evaluate.add_argument(
        "--out", type=Path, help="folder of the results; default: RUN/evaluation, or beside a bundle"
    )
    evaluate.add_argument("--split", choices=("val", "test"), default="test")
    evaluate.add_argument("--prompts", type=Path, help="YAML file of prompts; default: the modality's own")
    evaluate.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (2000)")
    evaluate.add_argument("--seed", type=int, default=0)

    transfer = verb(
        top, "transfer", "another task for the image encoder: outline organs, tell findings", _transfer
    )
    transfer.add_argument("model", type=Path, help="a run or a bundle")
    transfer.add_argument("data", type=Path, help="a record store with organ masks or labels")
    transfer.add_argument(
        "out", type=Path, nargs="?", help="folder of the results; default: beside the model"
    )
    transfer.add_argument(
        "--task", choices=("parts", "labels"), default="parts", help="outline organs or tell findings (parts)"
    )
    transfer.add_argument(
        "--train", choices=("frozen", "lora", "full"), default="frozen", help="what learns besides the head"
    )
    transfer.add_argument(
        "--start", choices=("model", "random"), default="model", help="random is what to compare with"
    )
    transfer.add_argument("--share", type=float, default=1.0, help="of the training patients (1.0)")
    transfer.add_argument("--split", choices=("val", "test"), default="test")
    transfer.add_argument("--steps", type=int, default=300, help="of a head that is trained by steps (300)")
    transfer.add_argument("--batch", type=int, default=4)
    transfer.add_argument("--lr", type=float, default=2e-3)
    transfer.add_argument("--seed", type=int, default=0)

    export = verb(top, "export", "run to bundle: weights, specs, ONNX, model card", _export)
    export.add_argument("run_dir", type=Path, metavar="RUN")
    export.add_argument("bundle", type=Path)
    export.add_argument("--no-onnx", action="store_true", help="leave the ONNX files out")

    index = verb(top, "index", "embed a store and index it", _index)
    index.add_argument("bundle", type=Path, nargs="?", help="a bundle or a run")
    index.add_argument("data", type=Path, nargs="?", help="a record store")
    index.add_argument("index", type=Path, help="the index to write, or to add to")
    index.add_argument(
        "--delete-patient",
        action="append",
        default=[],
        metavar="ID",
        help="erase a patient for good (repeatable)",
    )
    index.add_argument(
        "--delete-record",
        action="append",
        default=[],
        metavar="ID",
        help="erase a record for good (repeatable)",
    )

    search = verb(top, "search", "search an index by text, by image, or both", _search)
    search.add_argument("index", type=Path)
    search.add_argument("--text", help="a sentence or a report")
    search.add_argument(
        "--image", type=Path, help="a DICOM file or a picture; a CT series' folder or .nii.gz"
    )
    search.add_argument("--where", help="filter on metadata: \"view = 'PA' AND split = 'test'\"")
    search.add_argument("--k", type=int, default=10, help="hits (10)")
    search.add_argument("--exclude-patient", help="leave out a patient's own records")
    search.add_argument("--bundle", type=Path, help="the bundle, if it has moved since indexing")
    search.add_argument("--html", type=Path, help="also write a page with pictures")

    phantom = verb(top, "phantom", "synthetic studies with known truth", _phantom)
    phantom.add_argument("modality", choices=tuple(MODALITIES))
    phantom.add_argument("out", type=Path)
    phantom.add_argument("--n", type=int, default=200, help="studies (200)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--level", choices=("easy", "middle", "hard"), default="middle")
    phantom.add_argument("--size-px", type=int, help="longest side: pixels of a film (256), of a slice (80)")
    phantom.add_argument(
        "--unobservable", type=float, default=0.3, help="rate of sentences that the image cannot show (0.3)"
    )
    phantom.add_argument(
        "--findings", nargs="+", metavar="NAME", help="the findings that a study may have; default: all"
    )
    phantom.add_argument("--workers", type=int, help="processes; default: all cores")

    verb(top, "recipes", "list the recipes", _recipes)
    verb(top, "doctor", "what is there; what is missing on this machine and how to get it", _doctor)


def _train(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    if arguments.print_recipe:
        recipe = verbs.resolve_recipe(
            arguments.recipe, modality=arguments.modality, overrides=arguments.overrides
        )
        write(json.dumps(recipe.model_dump(mode="json"), indent=2) if arguments.json else recipe.to_yaml())
        return 0
    if arguments.data is None or arguments.out is None:
        raise UsageError(
            "train needs DATA and OUT.",
            hint=f"medvl {arguments.modality} train STORE RUN",
        )
    with progress(arguments) as bar:
        summary = verbs.train(
            arguments.data,
            arguments.out,
            modality=arguments.modality,
            recipe=arguments.recipe,
            overrides=arguments.overrides,
            progress=bar,
        )
    show(arguments, summary)
    return summary.exit_code


def _demo(arguments: argparse.Namespace) -> int:
    from medvl.demo import demo

    with progress(arguments) as bar:
        summary = demo(
            arguments.out, modality=arguments.modality, n=arguments.n, seed=arguments.seed, progress=bar
        )
    show(arguments, summary)
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    with progress(arguments) as bar:
        result = verbs.evaluate(
            arguments.model,
            arguments.data,
            out=arguments.out,
            split=arguments.split,
            prompts=arguments.prompts,
            resamples=arguments.resamples,
            seed=arguments.seed,
            progress=bar,
        )
    show(arguments, result)
    return 0


def _transfer(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    names = ("task", "train", "start", "share", "split", "steps", "batch", "lr", "seed")
    options = {name: getattr(arguments, name) for name in names}
    with progress(arguments) as bar:
        result = verbs.transfer(arguments.model, arguments.data, arguments.out, progress=bar, **options)
    show(arguments, result)
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    show(arguments, verbs.export(arguments.run_dir, arguments.bundle, onnx=not arguments.no_onnx))
    return 0


def _index(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    if arguments.delete_patient or arguments.delete_record:
        show(
            arguments,
            verbs.erase(arguments.index, patients=arguments.delete_patient, records=arguments.delete_record),
        )
        return 0
    if arguments.bundle is None or arguments.data is None:
        raise UsageError("index needs BUNDLE, DATA and INDEX.", hint="medvl index BUNDLE STORE INDEX")
    with progress(arguments) as bar:
        show(arguments, verbs.index(arguments.bundle, arguments.data, arguments.index, progress=bar))
    return 0


def _search(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    hits = verbs.search(
        arguments.index,
        text=arguments.text,
        image=arguments.image,
        where=arguments.where,
        k=arguments.k,
        exclude_patient=arguments.exclude_patient,
        bundle=arguments.bundle,
        html=arguments.html,
    )
    show(arguments, hits)
    return 0


def _phantom(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    with progress(arguments) as bar:
        summary = verbs.phantom(
            arguments.out,
            modality=arguments.modality,
            n=arguments.n,
            seed=arguments.seed,
            level=arguments.level,
            size_px=arguments.size_px,
            unobservable=arguments.unobservable,
            findings=arguments.findings,
            workers=arguments.workers,
            progress=bar,
        )
    show(arguments, summary)
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    from medvl import verbs

    show(arguments, verbs.list_recipes())
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from medvl.doctor import examine

    show(arguments, examine())
    return 0
