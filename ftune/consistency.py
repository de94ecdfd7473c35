"""Contradictions between the sections of a recipe, and keys that nothing would obey.

Each check is a small generator of problems; `consistency_problems` runs them all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ftune.errors import Problem, suggestion
from ftune.file_formats import ENDINGS, TABLES, codec_of, ending_of
from ftune.hook import hook_problem, is_hook, parse_hook
from ftune.quantities import Slice, is_share, parse_share
from ftune.recipe import COLUMNS, Recipe, Source, sources

NO_EFFECT = "has no effect"
_NEED_EVAL = ("eval.every", "eval.max_rows", "eval.metrics", "eval.generate_every", "eval.shots")


def consistency_problems(recipe: Recipe) -> list[Problem]:
    """Everything wrong between the keys of a recipe whose single values are all valid."""
    written = _written(recipe)
    checks = (
        _axes, _method, _model, _data, _sources, _splitting, _text_rows, _packing, _evaluation, _stopping, _generation,
        _shots, _batch,
    )  # fmt: skip
    return [problem for check in checks for problem in check(recipe, written)]


def hook_problems(recipe: Recipe, folder: Path) -> list[Problem]:
    """What is wrong with the metrics of the user's own, as far as that can be told without running them."""
    names = [] if recipe.eval.metrics == "auto" else recipe.eval.metrics
    problems = []
    for index, name in enumerate(names):
        if is_hook(name):
            try:
                message = hook_problem(parse_hook(name), folder, num_arguments=2)
            except ValueError as error:
                message = f"{error}."
            problems += [] if message is None else [Problem(f"eval.metrics.{index}", message)]
    return problems


def _written(recipe: Recipe) -> set[str]:
    """Dotted `section.key` of every value that was given rather than defaulted, and of a preset's `weights`."""
    blocks = {name: getattr(recipe, name) for name in recipe.model_fields_set} | {"method.weights": recipe.learner}
    sections = {name: block for name, block in blocks.items() if isinstance(block, BaseModel)}
    return {f"{name}.{key}" for name, block in sections.items() for key in block.model_fields_set}


def _axes(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    method, objective, data = recipe.method, recipe.objective, recipe.data
    if objective.name not in method.objectives:
        works = ", ".join(sorted(method.objectives))
        message = f"{method.name} does not learn from {objective.name}. It works with: {works}."
        yield Problem("method.name", message)
    elif objective.name not in method.learner.objectives:
        works = ", ".join(sorted(method.learner.objectives & method.objectives))
        message = f"{method.learner.name} does not learn from {objective.name}. It works with: {works}."
        yield Problem("method.weights", message)
    accepted = method.accepts(objective.formats)
    if accepted and data.format != "auto" and data.format not in accepted:
        works = ", ".join(sorted(accepted))
        who = objective.name if accepted == objective.formats else f"method {method.name} with {objective.name}"
        yield Problem("data.format", f"{data.format} rows do not fit {who}. Expected one of: {works}.")


def _method(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    """What the method says once its objective is known."""
    if recipe.objective.name not in recipe.learner.objectives:
        return
    method, own = recipe.learner.bound(recipe.objective), recipe.learner.problems()
    block = "method" if recipe.method is recipe.learner else "method.weights"
    yield from (Problem(f"{block}.{key}", message) for key, message in method.problems() if (key, message) not in own)
    for key, why in method.dead_keys().items():
        path = key.replace("method", block, 1) if key.startswith("method.") else key
        if path in written:
            yield Problem(path, f"{NO_EFFECT}: {why}. Remove it.")


def _model(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    model, method = recipe.model, recipe.learner
    if model.trust_remote_code and not re.fullmatch(r"[0-9a-f]{40}", model.revision or ""):
        message = "needs model.revision to be a full 40-hex commit, so that the code is pinned."
        yield Problem("model.trust_remote_code", message)
    if model.name.startswith(("builtin:", ".", "/")) and model.revision is not None:
        yield Problem("model.revision", f"{NO_EFFECT} on {model.name}, which is not a hub id. Remove it.")
    if model.name.startswith("builtin:tiny-") and model.init == "random":
        yield Problem("model.init", f"{NO_EFFECT} on {model.name}, whose weights are random already. Remove it.")
    if model.dtype != "auto" and method.standalone:
        message = f"{NO_EFFECT}: method {method.name} freezes nothing, and what learns is fp32. Remove it."
        yield Problem("model.dtype", message)


def _data(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    data = recipe.data
    known = _columns_of({data.format, *(source.format or data.format for _, source in _blocks(recipe))})
    for column in sorted(set(data.columns) - known):
        yield Problem(f"data.columns.{column}", f"is no column of ours.{suggestion(column, known)}")
    for name in ("train", "test", "eval"):
        value = getattr(data, name)
        shares = [path for path in (value if isinstance(value, list) else [value]) if is_share(path)]
        if name != "train" and any(source.weight != 1 for source in sources(None if is_share(value) else value)):
            yield Problem(f"data.{name}", "a weight is for training rows: scores count each row once. Remove it.")
        if shares and (name != "eval" or isinstance(value, list)):
            yield Problem(f"data.{name}", f"expected a path, received the share {shares[0]}.")
    if is_share(data.eval):
        try:
            parse_share(str(data.eval))
        except ValueError as error:
            yield Problem("data.eval", f"{error}.")


def _splitting(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    """Keys of the split and of what two splits share."""
    data = recipe.data
    for key in ("group_by", "stratify"):
        if f"data.{key}" in written and getattr(data, key) and not is_share(data.eval):
            yield Problem(f"data.{key}", f"{NO_EFFECT} unless data.eval is a share such as '5%'. Remove it.")
    if data.stratify and recipe.objective.encoding not in ("row_labels", "token_labels"):
        yield Problem("data.stratify", f"keeps shares of labels; rows of {recipe.objective.name} have none. Remove it.")
    if data.eval is None and data.test is None:
        for key in ("near_duplicates", "leakage"):
            if f"data.{key}" in written:
                yield Problem(f"data.{key}", f"{NO_EFFECT} without data.eval or data.test. Remove it.")


def _columns_of(formats: set[str]) -> set[str]:
    """Our names for the columns of these formats; `auto` may be any."""
    return {name for known, names in COLUMNS.items() if known in formats or "auto" in formats for name in names}


def _blocks(recipe: Recipe) -> Iterator[tuple[str, Source]]:
    """Every source that is written as a block, with its dotted key."""
    parts = {f"data.{name}": getattr(recipe.data, name) for name in ("train", "eval", "test")}
    for key, value in (parts | {"eval.guard": recipe.eval.guard}).items():
        if isinstance(value, list):
            yield from ((f"{key}.{index}", item) for index, item in enumerate(value) if isinstance(item, Source))
        elif isinstance(value, Source):
            yield key, value


def _sources(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    accepted = recipe.method.accepts(recipe.objective.formats)
    for key, source in _blocks(recipe):
        if accepted and source.format not in (None, "auto", *accepted):
            works = ", ".join(sorted(accepted))
            yield Problem(f"{key}.format", f"{source.format} rows do not fit here. Expected one of: {works}.")
        known = _columns_of({source.format or recipe.data.format})
        for column in sorted(set(source.columns or ()) - known):
            yield Problem(f"{key}.columns.{column}", f"is no column of ours.{suggestion(column, known)}")
        yield from _reading(key, source)


def _reading(key: str, source: Source) -> Iterator[Problem]:
    """Keys of a block that say how a file or a hub set is read, and could not be obeyed."""
    ending = ENDINGS.get(ending_of(source.path))
    looks_like_one = source.path.startswith((".", "/")) or any(mark in source.path for mark in "*?[")
    file = bool(source.loader or source.file_format or ending or codec_of(source.path) or looks_like_one)
    what = "a file" if file else "a set of the hub"
    holds = "what a loader reads" if source.loader else source.file_format or ending or what
    dead = {name: what for name in ("subset", "revision") if file}
    dead |= {name: holds for name in ("header", "quoting") if holds not in TABLES and (ending or not looks_like_one)}
    dead |= {"file_format": holds} if source.loader else {}
    for name, why in dead.items():
        if getattr(source, name) is not None:
            yield Problem(f"{key}.{name}", f"{NO_EFFECT} on {why}. Remove it.")
    if len(set(source.header or ())) < len(source.header or ()):
        yield Problem(f"{key}.header", f"names a column twice: {', '.join(source.header or ())}. Remove one.")
    split = Slice.parse(source.split).name
    if file and split not in ("", "train"):
        hint = "Name the file of that split, or write a range alone, such as '[:400]'."
        yield Problem(f"{key}.split", f"{what} has no split {split!r}. {hint}")


def _text_rows(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    data = recipe.data
    chat = {"auto", "chat"} & {data.format, *(source.format for _, source in _blocks(recipe))}
    if data.roles and not chat:
        yield Problem("data.roles", f"{NO_EFFECT} on format {data.format}, which has no roles. Remove it.")
    labelled = recipe.objective.encoding in ("row_labels", "token_labels")
    if "data.system" in written and (labelled or data.format in ("text", "pairs")):
        yield Problem("data.system", f"{NO_EFFECT} on rows without a system text. Remove it.")
    if labelled:
        yield from _labelled_rows(recipe, written)
    elif data.format == "text":
        if data.template is not None:
            yield Problem("data.template", f"{NO_EFFECT} on format text, which has no prompt. Remove it.")
        if "data.train_on" in written and data.train_on != "all":
            yield Problem("data.train_on", f"{NO_EFFECT} on format text, where every token is trained. Remove it.")
        if data.overlong == "truncate_prompt":
            message = "truncate_prompt needs a prompt; text rows have none. Use split, truncate or drop."
            yield Problem("data.overlong", message)
    elif data.format == "tokens":
        for key in ("data.template", "data.train_on"):
            if key in written and getattr(data, key.removeprefix("data.")) is not None:
                yield Problem(key, f"{NO_EFFECT} on format tokens, whose rows say it themselves. Remove it.")
    elif data.format != "auto" and data.overlong == "split":
        message = "split is for text rows: half an answer has no prompt. Use truncate_prompt or drop."
        yield Problem("data.overlong", message)


def _labelled_rows(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    data = recipe.data
    if "data.train_on" in written:
        yield Problem("data.train_on", f"{NO_EFFECT} on rows with labels, where the label is learned. Remove it.")
    if data.overlong in ("split", "truncate_prompt"):
        yield Problem("data.overlong", f"{data.overlong} is not for rows with labels. Use drop or truncate.")
    if recipe.objective.encoding == "token_labels" and data.template is not None:
        yield Problem("data.template", f"{NO_EFFECT} on words with tags, which are taken as they are. Remove it.")


def _packing(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    if recipe.data.packing is True:
        reason = recipe.learner.packing_constraint()
        if not recipe.objective.packs:
            reason = f"objective {recipe.objective.name} reads rows side by side"
        if reason is not None:
            yield Problem("data.packing", f"{reason}. Remove it.")


def _evaluation(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    stopping = recipe.train.early_stopping
    limited = stopping is not None and stopping.max_forgetting is not None and bool(recipe.eval.guard)
    if recipe.data.eval is None:
        scored = {"eval.metrics", "eval.shots"} if recipe.data.test is not None else set()
        scored |= {"eval.max_rows"} if recipe.eval.guard else set()
        scored |= {"eval.every"} if limited else set()
        dead = [key for key in _NEED_EVAL if key in written and key not in scored]
        dead += ["checkpoint.best"] if "checkpoint.best" in written and recipe.checkpoint.best is not None else []
        dead += ["data.seed"] if recipe.data.seed is not None and not recipe.eval.guard else []
        dead += ["train.early_stopping"] if stopping is not None and not limited else []
        for key in dead:
            message = f"{NO_EFFECT} without data.eval. Give data.eval a path or a share such as '5%'."
            yield Problem(key, message)


def _stopping(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    """Rules of early stopping that nothing would set off."""
    stopping = recipe.train.early_stopping
    if stopping is None:
        return
    key = "train.early_stopping"
    if stopping.max_forgetting is not None and not recipe.eval.guard:
        message = f"{NO_EFFECT} without eval.guard. Name rows there that the model must not forget."
        yield Problem(f"{key}.max_forgetting", message)
    elif stopping.max_forgetting is None and stopping.patience is None:
        yield Problem(key, f"{NO_EFFECT} with neither patience nor max_forgetting. Remove it.")
    elif recipe.data.eval is None and stopping.max_forgetting is not None:
        for name in sorted({"patience", "min_delta"} & stopping.model_fields_set):
            if getattr(stopping, name) is not None:
                yield Problem(f"{key}.{name}", f"{NO_EFFECT} without data.eval. Remove it.")
    if stopping.patience is None and "min_delta" in stopping.model_fields_set:
        yield Problem(f"{key}.min_delta", f"{NO_EFFECT} without patience. Remove it.")


def _generation(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    objective = recipe.objective
    auto = recipe.eval.metrics == "auto"
    metrics = recipe.method.default_metrics(objective) if auto else tuple(recipe.eval.metrics)
    for metric in metrics:
        if (message := objective.metric_problem(metric)) is not None:
            yield Problem("eval.metrics", message)
    if not objective.generates(metrics):
        for key in ("eval.generate_every", "eval.max_new_tokens"):
            if key in written and getattr(recipe.eval, key.split(".")[1]) is not None:
                message = f"{NO_EFFECT}: no metric in eval.metrics generates. Add exact_match or remove the key."
                yield Problem(key, message)


def _shots(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    """What no prompt can ask, and a number that is there twice."""
    shots, objective = recipe.eval.shots, recipe.objective
    if len(set(shots)) < len(shots):
        yield Problem("eval.shots", f"names a number twice: {shots}. Remove one.")
    labelled = objective.name == "sequence_classification" and getattr(objective, "problem", "") == "single_label"
    if shots and not (objective.generation_metrics or labelled):
        works = "causal_lm, seq2seq_lm, and sequence_classification of one label on a decoder"
        yield Problem("eval.shots", f"objective {objective.name} continues no prompt. It is for {works}. Remove it.")


def _batch(recipe: Recipe, written: set[str]) -> Iterator[Problem]:
    train = recipe.train
    if isinstance(train.micro_batch_size, int) and train.micro_batch_size > train.batch_size:
        message = f"{train.micro_batch_size} exceeds batch_size {train.batch_size}. Lower it."
        yield Problem("train.micro_batch_size", message)
    if recipe.distributed.devices > train.batch_size:
        message = f"{recipe.distributed.devices} devices share {train.batch_size} examples a step. Raise batch_size."
        yield Problem("distributed.devices", message)
