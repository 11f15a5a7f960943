"""The verb ``text adapt``: reports and a decoder become a report encoder, stage by stage.

Layout of ``out``::

    options.yaml, metrics.csv
    trained.txt          a hash of the words of each training report, so that no evaluation asks for it
    stages/start/        a model from random weights, before anything
    stages/causal/       … and each finished stage: a directory that the text encoder ``huggingface`` loads
    work/NAME/           checkpoints of the stage at hand; gone when it is done
    config.json, model.safetensors, tokenizer.json, adapt.json
                         the last stage's files; adapt.json is written last of all

Stages are taken from LLM2Vec (BehnamGhader et al. 2024, arXiv 2404.05961): attention to both sides, masked
next-token prediction, SimCSE; and from LLM2Vec4CXR: wordings of a report as positives, single changed facts
as hard negatives.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from medvl.config import dump_yaml, parse_json, parse_yaml
from medvl.corpus import ReportCase
from medvl.encoders.configs import READING_FILE, model_directory
from medvl.encoders.lora import add_lora, merge_lora
from medvl.errors import CheckpointError, ConfigError, UsageError
from medvl.language.decoder import Decoder, from_scratch, load_decoder, save_decoder
from medvl.language.loop import fit, held_out_loss
from medvl.language.options import AdaptOptions
from medvl.language.stages import CausalTask, ContrastTask, MaskedTask, Reword, SupervisedTask, Task
from medvl.language.trials import text_key
from medvl.notice import NOTICE
from medvl.progress import Progress
from medvl.store import file_sha256, write_atomic
from medvl.tokens import ReportTokeniser
from medvl.training.checkpoints import latest, verify, write_checkpoint
from medvl.training.logs import MetricsLog

__all__ = ["TRAINED", "AdaptSummary", "adapt", "require_free"]

log = logging.getLogger(__name__)
OPTIONS, TRAINED = "options.yaml", "trained.txt"


@dataclass(frozen=True)
class AdaptSummary:
    """How a call of :func:`adapt` ended.

    Attributes:
        out: the directory.
        status: ``finished``; ``interrupted`` by a signal, after saving; or ``complete``: it had finished
            before this call, and nothing was done.
        stages: steps, and the loss of the held-out reports where it means something, of each finished stage.
        seconds: wall time of this call.
        signal: the number of the signal that interrupted it, or 0.
    """

    out: Path
    status: Literal["finished", "interrupted", "complete"]
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    signal: int = 0

    @property
    def exit_code(self) -> int:
        """0, or 128 and the signal's number as shells count."""
        return 128 + self.signal if self.signal else 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "out": str(self.out)}

    def lines(self) -> list[str]:
        """Return the text of the command."""
        text = [f"{self.out}: {self.status}, {self.seconds:.0f} s"]
        for name, values in self.stages.items():
            loss = values.get("held_out_loss")
            told = "" if loss is None else f", loss of held-out reports {loss:.3f}"
            text.append(f"  {name}: {values['steps']} steps{told}")
        if self.status == "interrupted":
            text.append("Run the same command again to go on from here.")
        return [*text, NOTICE]


def adapt(
    cases: Sequence[ReportCase],
    out: Path | str,
    *,
    options: AdaptOptions,
    variants: Reword,
    hard_negatives: Reword,
    split_seed: int = 0,
    progress: Progress | None = None,
) -> AdaptSummary:
    """Adapt a decoder to reports, so that it embeds them.

    Only cases of the split ``train`` train, the tokeniser included; those of ``val`` are measured and choose
    nothing. Called again with the same arguments it goes on from the newest whole checkpoint and, on a CPU,
    ends as an uninterrupted run would. SIGINT and SIGTERM save after the step at hand.

    Args:
        cases: reports, such as :func:`medvl.preprocess.reports.corpus.read_corpus` returns.
        out: a new folder, or an unfinished one of the same options and cases.
        options: see :class:`medvl.language.options.AdaptOptions`.
        variants: ``variants(case, seed=…)``: other wordings with the same facts.
        hard_negatives: ``hard_negatives(case, seed=…)``: wordings with one fact changed.
        split_seed: that made the splits of the cases; recorded for the evaluation.
        progress: told about each step.

    Raises:
        UsageError: no case is in ``train``, or the folder holds something else.
        ConfigError: the folder was started with other options, or see :mod:`medvl.language.decoder`.
        CheckpointError: the folder was started with other cases.
    """
    started, out = time.monotonic(), Path(out)
    train = [case for case in cases if case.split == "train" and case.sentences]
    val = [case for case in cases if case.split == "val" and case.sentences]
    if not train:
        raise UsageError(
            f"none of the {len(cases)} cases is in the split 'train'.",
            hint="Check the corpus and its splits.",
        )
    run = _Run(out, options, train, val, variants, hard_negatives, split_seed, progress)
    run.claim()
    if (out / READING_FILE).is_file():
        record = parse_json((out / READING_FILE).read_text("utf-8"), what=READING_FILE)
        return AdaptSummary(out, "complete", record["stages"], time.monotonic() - started)
    from medvl.training.steps import StopSignal

    stop = StopSignal()
    stop.listen()
    try:
        stages = run.go(stopped=lambda: stop.received is not None)
    finally:
        stop.ignore()
    status: Literal["finished", "interrupted"] = "interrupted" if run.interrupted else "finished"
    signal = (stop.received or 0) if run.interrupted else 0
    return AdaptSummary(out, status, stages, time.monotonic() - started, signal)


def require_free(out: Path) -> None:
    """Refuse a folder that holds something else than an adaptation.

    Raises:
        UsageError: it does.
    """
    if out.exists() and not (out / OPTIONS).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            "the output folder holds something else than an adaptation.", hint="Give a new folder."
        )


class _Run:
    """The stages of one call, each from the directory of the one before."""

    def __init__(
        self,
        out: Path,
        options: AdaptOptions,
        train: list[ReportCase],
        val: list[ReportCase],
        variants: Reword,
        hard_negatives: Reword,
        split_seed: int,
        progress: Progress | None,
    ) -> None:
        self.split_seed = split_seed
        self.out, self.options, self.train, self.val = out, options, train, val
        self.reword = {"variants": variants, "hard_negatives": hard_negatives}
        self.progress = progress
        self.data = _digest([*train, *val])
        self.device = options.device
        if options.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.bf16 = options.precision == "bf16-mixed" or (
            options.precision == "auto" and (self.device == "cuda" or _multiplies_bf16())
        )
        self.interrupted = False

    def claim(self) -> None:
        """Make the folder one of this adaptation, or refuse."""
        path = self.out / OPTIONS
        values = {"options": self.options.model_dump(mode="json"), "data": self.data}
        if path.is_file():
            before = parse_yaml(path.read_text("utf-8"), what=OPTIONS)
            if before.get("data") != self.data:
                raise CheckpointError(
                    f"this folder was started with other cases: digest {before.get('data')} then, "
                    f"{self.data} now.",
                    hint="Give another output folder, or the reports it was started with.",
                )
            changed = [
                key
                for key, value in values["options"].items()  # type: ignore[attr-defined]
                if before["options"].get(key) != value
            ]
            if changed:
                raise ConfigError(
                    f"this folder was started with other options: {', '.join(changed)}.",
                    hint="Give another output folder, or the options of its options.yaml.",
                )
            return
        require_free(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        keys = sorted({text_key(case.sentences) for case in self.train})
        write_atomic(self.out / TRAINED, ("\n".join(keys) + "\n").encode())
        write_atomic(path, dump_yaml(values).encode())

    def go(self, *, stopped: Callable[[], bool]) -> dict[str, dict[str, Any]]:
        """Run what is left; return what each finished stage says."""
        here = self._start()
        records: dict[str, dict[str, Any]] = {}
        offset = 0
        for name in self.options.stages:
            folder = self.out / "stages" / name
            if not _whole(folder):
                record = self._stage(name, here, folder, offset=offset, stopped=stopped)
                if record is None:
                    self.interrupted = True
                    return records
                shutil.rmtree(self.out / "work" / name, ignore_errors=True)
            records[name] = parse_json((folder / READING_FILE).read_text("utf-8"), what=READING_FILE)["stage"]
            offset += int(records[name]["steps"])
            here = folder
        self._export(here, records)
        return records

    def _start(self) -> Path:
        """Return the directory of the model that the first stage takes."""
        options = self.options
        if options.model is not None:
            return model_directory(options.model, allow_download=options.allow_download)
        folder = self.out / "stages" / "start"
        if not _whole(folder):
            torch.manual_seed(options.seed)
            texts = [sentence for case in self.train for sentence in case.sentences]
            decoder = from_scratch(texts, shape=options.scratch, max_tokens=options.max_tokens)
            write_checkpoint(folder, functools.partial(_fill, decoder=decoder, record={}))
        return folder

    def _stage(
        self, name: str, source: Path, folder: Path, *, offset: int, stopped: Callable[[], bool]
    ) -> dict[str, Any] | None:
        options = self.options
        stage = getattr(options, name)
        torch.manual_seed(options.seed)
        decoder = load_decoder(
            source,
            max_tokens=options.max_tokens,
            pooling="mean" if name == "causal" else options.pooling,
            bidirectional=name != "causal",
        )
        modules: dict[str, nn.Module] = {"tower": decoder.tower}
        if options.lora is not None:
            add_lora(decoder.tower, options.lora)
            decoder.head.requires_grad_(requires_grad=False)
        elif name in ("causal", "masked"):
            modules["head"] = decoder.head
        if options.pooling == "latent" and name == "masked" and decoder.tower.pooler is not None:
            decoder.tower.pooler.requires_grad_(requires_grad=False)  # this stage reads states, not vectors
        decoder.lm.to(self.device)
        decoder.tower.to(self.device)
        task = self._task(name, self.train, tokeniser=decoder.tokeniser)
        table = MetricsLog(self.out, step=offset + _done(self.out / "work" / name), tensorboard=False)
        done, total = fit(
            task,
            decoder,
            name=name,
            options=stage,
            modules=modules,
            work=self.out / "work" / name,
            seed=options.seed,
            every_steps=options.every_steps,
            log_every=options.log_every,
            table=table,
            offset=offset,
            autocast=self._autocast,
            stopped=stopped,
            progress=self.progress,
        )
        if done < total:
            return None
        if options.lora is not None:
            merge_lora(decoder.tower)
        held_out = None
        if self.val and name != "contrast":  # without dropout both passes are one
            held_out = held_out_loss(
                self._task(name, self.val, tokeniser=decoder.tokeniser),
                decoder,
                batch=stage.batch,
                seed=options.seed,
                autocast=self._autocast,
            )
        record = {"steps": total, "held_out_loss": held_out, "texts": len(task.lengths)}
        write_checkpoint(folder, functools.partial(_fill, decoder=decoder, record={"stage": record}))
        return record

    def _task(self, name: str, cases: list[ReportCase], *, tokeniser: ReportTokeniser) -> Task:
        options = self.options
        texts = [case.sentences for case in cases]
        if name == "causal":
            return CausalTask(texts, tokeniser=tokeniser)
        if name == "masked":
            return MaskedTask(texts, tokeniser=tokeniser, rate=options.masked.rate)
        if name == "contrast":
            return ContrastTask(texts, tokeniser=tokeniser, scale=options.contrast.scale)
        return SupervisedTask(
            cases,
            tokeniser=tokeniser,
            variants=self.reword["variants"],
            hard_negatives=self.reword["hard_negatives"],
            options=options.supervised,
            seed=options.seed,
            progress=self.progress,
        )

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def _export(self, last: Path, records: dict[str, dict[str, Any]]) -> None:
        """Copy the last stage's files into ``out``; adapt.json comes last."""
        reading = parse_json((last / READING_FILE).read_text("utf-8"), what=READING_FILE)
        first = self.out / "stages" / ("causal" if "causal" in records else "start")
        if self.options.model is not None:
            first = model_directory(self.options.model, allow_download=False)
        for path in sorted(last.iterdir()):
            if path.suffix in (".json", ".safetensors") and path.name not in (READING_FILE, "manifest.json"):
                temporary = self.out / f".{path.name}.tmp"
                shutil.copyfile(path, temporary)
                temporary.replace(self.out / path.name)
        values = {
            **{key: reading[key] for key in ("pooling", "bidirectional")},
            "stages": records,
            "seed": self.options.seed,
            "split_seed": self.split_seed,
            "precision": "bf16-mixed" if self.bf16 else "32",
            "data": self.data,
            "cases": {"train": len(self.train), "val": len(self.val)},
            "unadapted": {path.name: file_sha256(path) for path in sorted(first.glob("*.safetensors"))},
            "versions": {
                name: importlib.metadata.version(name) for name in ("medvl", "torch", "transformers", "peft")
            },
            "notice": NOTICE,
        }
        shutil.rmtree(self.out / "work", ignore_errors=True)
        write_atomic(self.out / READING_FILE, json.dumps(values, indent=1, sort_keys=True).encode())


def _fill(folder: Path, *, decoder: Decoder, record: dict[str, Any]) -> None:
    decoder.lm.to("cpu")
    decoder.tower.to("cpu")
    save_decoder(decoder, folder, record=record)


def _whole(folder: Path) -> bool:
    try:
        verify(folder)
    except CheckpointError:
        return False
    return True


def _done(work: Path) -> int:
    newest = latest(work)
    return int(newest.name.removeprefix("step-")) if newest else 0


def _digest(cases: Sequence[ReportCase]) -> str:
    rows = [[case.case_id, case.split, case.sentences, case.findings, case.impression] for case in cases]
    return hashlib.blake2b(json.dumps(rows).encode(), digest_size=12).hexdigest()


def _multiplies_bf16() -> bool:
    """Say whether this CPU has AMX; elsewhere bfloat16 is emulated and slower than float32."""
    return bool(torch.cpu._is_amx_tile_supported())
