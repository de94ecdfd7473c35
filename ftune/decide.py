"""The plan is decided: a pure function of recipe and facts. Nothing below this file invents a default.

Every value keeps its source, so that `ftune plan` can say where each number came from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ftune.data.order import steps_per_epoch
from ftune.disk_need import checkpoint_bytes, disk_need
from ftune.errors import MachineError, Problem, RecipeError
from ftune.facts import Device, Facts, Machine
from ftune.memory import Dtype, estimate_memory, memory_of_a_process
from ftune.micro_batch import Decide, Where, decide_accumulation, decide_micro_batch, longest_of, types_of
from ftune.plan import Plan
from ftune.quantities import Duration, is_share, parse_share, steps_of
from ftune.recipe import EarlyStopping, Recipe

LONGEST_BY_DEFAULT = 1024
LOGITS_AT_ONCE: dict[Device, int] = {"cpu": 2**24, "cuda": 2**27, "mps": 2**26}
"""Numbers in the logits of one chunk of targets: enough for a full-speed product; see docs/results.md."""
WORTH_COMPILING = 3e14
"""Operations of a run from which on a CPU wins back what compiling costs: some 20 minutes; see docs/results.md."""


def choose_max_length(recipe: Recipe, max_positions: int | None) -> tuple[int, str]:
    """Longest example in tokens, and the source of the number.

    Raises:
        RecipeError: the recipe asks for more than the model can take.
    """
    asked, taken = recipe.data.max_length, recipe.learner.positions_taken
    if max_positions is not None:
        max_positions -= taken
    if asked == "auto":
        if max_positions is None or max_positions >= LONGEST_BY_DEFAULT:
            return LONGEST_BY_DEFAULT, "auto: min(1024, the model's limit)"
        return max_positions, f"auto: the model's limit of {max_positions} positions"
    if max_positions is not None and asked > max_positions:
        besides = f" besides the {taken} virtual ones of {recipe.learner.name}" if taken else ""
        message = f"{asked} exceeds the model's {max_positions} positions{besides}. Lower it."
        raise RecipeError([Problem("data.max_length", message)])
    return asked, "data.max_length"


def choose_precision(recipe: Recipe, machine: Machine) -> tuple[Dtype, str]:
    """Type of computation, and why."""
    asked = recipe.train.precision
    if asked == "auto":
        reason = recipe.learner.precision_constraint()
        if reason is not None:
            return "fp32", f"auto: {reason}"
        if machine.fast_bf16:
            return "bf16", f"auto: this {machine.device} device multiplies bf16 fastest"
        return "fp32", f"auto: this {machine.device} device has no bf16 instructions"
    return asked, "train.precision"


def choose_threads(machine: Machine, num_processes: int) -> tuple[int, str]:
    """Threads of each process, and why."""
    share = max(1, machine.num_threads // num_processes)
    shared = f"{machine.num_threads} cores / {num_processes} processes"
    if machine.asked_threads is not None and machine.asked_threads < share:
        return machine.asked_threads, f"environment: OMP_NUM_THREADS={machine.asked_threads}, fewer than {shared}"
    return share, shared


def choose_frozen_dtype(recipe: Recipe, precision: Dtype) -> tuple[Dtype, str]:
    """Storage of frozen weights, and why."""
    if recipe.learner.standalone:
        return "fp32", f"method {recipe.method.name}: every weight learns, so all are fp32 masters"
    if recipe.model.dtype != "auto":
        return recipe.model.dtype, "model.dtype"
    reason = recipe.learner.storage_constraint()
    if reason is not None:
        return "fp32", f"auto: {reason}"
    return precision, f"auto: frozen weights are kept in the type of computation ({precision})"


def choose_loss_chunk(refusal: str | None, vocabulary: int, device: Device) -> tuple[int | None, str]:
    """How many targets have logits at once, or None for the logits of all tokens; and why.

    Args:
        refusal: of `ftune.loss_trial`.
        vocabulary: outputs of the head.
        device: that computes.
    """
    if refusal is not None:
        return None, f"auto: {refusal}"
    chunk = max(1, LOGITS_AT_ONCE[device] // vocabulary)
    return chunk, f"auto: a trial found losses and gradients equal; {chunk} targets x {vocabulary} words at once"


def choose_compile(recipe: Recipe, facts: Facts, steps: int, source: str) -> tuple[bool, str]:
    """Whether blocks are compiled, and why.

    Raises:
        MachineError: the recipe insists, and the machine cannot.
    """
    asked, refusal = recipe.train.compile, facts.machine.compile_refusal
    if recipe.learner.bound(recipe.objective).fits_at_once:
        return False, f"method {recipe.learner.name} fits all rows at once, and nothing is repeated"
    if asked is True and refusal is not None:
        raise MachineError(f"train.compile: {refusal}. Install it, or set train.compile to false.")
    if asked != "auto":
        return asked, source
    if refusal is not None:
        return False, f"auto: {refusal}"
    if facts.machine.device != "cpu":
        return False, f"auto: what compiling costs and gains on {facts.machine.device} was not measured"
    tokens = steps * recipe.train.batch_size * facts.data.tokens / facts.data.examples
    work = 6 * facts.model.total_parameters * tokens
    compared = "at least" if work >= WORTH_COMPILING else "less than"
    return work >= WORTH_COMPILING, f"auto: about {work:.1e} operations in all, {compared} {WORTH_COMPILING:.0e}"


def make_plan(recipe: Recipe, facts: Facts, source: Callable[[str], str] = lambda key: f"recipe: {key}") -> Plan:
    """Decide everything.

    Args:
        recipe: what was asked.
        facts: what is true here.
        source: names the place a dotted key was written, or `default`.

    Raises:
        RecipeError: the machine, the model or the data cannot do what was asked.
        MachineError: there are not as many devices as asked.
    """
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}

    def decide(name: str, value: Any, why: str) -> Any:
        values[name], sources[name] = value, why
        return value

    _decide_machine(recipe, facts, source, decide)
    _decide_batch(recipe, facts, source, decide, values)
    _decide_optimizer(recipe, facts, source, decide, values)
    _decide_cadences(recipe, facts, source, decide, values)
    _decide_sizes(recipe, facts, decide, values)
    return Plan(**values, sources=sources)


def _decide_machine(recipe: Recipe, facts: Facts, source: Where, decide: Decide) -> None:
    machine = facts.machine
    decide("device", machine.device, "found here")
    devices = recipe.distributed.devices
    if machine.device != "cpu" and devices > machine.num_devices:
        raise MachineError(f"distributed.devices asks for {devices} devices; there are {machine.num_devices} here.")
    decide("num_processes", devices, source("distributed.devices"))
    decide("num_threads", *choose_threads(machine, devices))
    on_device = ("the device's own", f"torch keeps the memory of {machine.device}")
    decide("allocator", *(machine.allocator if machine.device == "cpu" else on_device))
    precision, why = choose_precision(recipe, machine)
    decide("precision", precision, why)
    decide("frozen_dtype", *choose_frozen_dtype(recipe, precision))
    if machine.device == "cpu":
        decide("deterministic", True, "runs on CPU always are")
    else:
        decide("deterministic", recipe.train.deterministic, source("train.deterministic"))
    decide("seed", recipe.seed, source("seed"))


def _decide_batch(recipe: Recipe, facts: Facts, source: Where, decide: Decide, values: dict[str, Any]) -> None:
    train, data = recipe.train, facts.data
    decide("max_length", *choose_max_length(recipe, facts.model.max_positions))
    decide("examples", data.examples, "counted in data.train after splitting and dropping")
    decide("tokens_per_epoch", data.tokens, "counted")
    decide("targets_per_epoch", data.targets, "counted")
    decide("batch_size", train.batch_size, source("train.batch_size"))
    decide("packing", *_packing(recipe, facts, source("data.packing")))
    decide("loss_chunk", *choose_loss_chunk(facts.model.chunking_refusal, facts.model.vocabulary, values["device"]))
    checkpointing = _decide_checkpointing(recipe, facts, source, decide, values)
    decide_micro_batch(recipe, facts, source, decide, values, checkpointing)
    decide_accumulation(recipe, facts, decide, values)
    per_epoch = steps_per_epoch(data.examples, train.batch_size)
    decide("steps_per_epoch", per_epoch, f"{data.examples} examples / batch_size {train.batch_size}, rounded up")
    steps = decide("steps", *_steps(recipe, facts, per_epoch, source("train.duration")))
    decide("compile", *choose_compile(recipe, facts, steps, source("train.compile")))
    decide("max_minutes", train.max_minutes, source("train.max_minutes"))


def _packing(recipe: Recipe, facts: Facts, source: str) -> tuple[bool, str]:
    """Whether rows are laid end to end, and why.

    Raises:
        RecipeError: the recipe insists, and they would see each other.
    """
    asked, reason = recipe.data.packing, facts.model.packing_refusal
    if asked is True and reason is not None:
        raise RecipeError([Problem("data.packing", f"{reason}. Set it to auto or false.")])
    if asked == "auto":
        return reason is None, f"auto: {reason or 'a trial found rows isolated from each other'}"
    return asked, source


def _steps(recipe: Recipe, facts: Facts, per_epoch: int, source: str) -> tuple[int, str]:
    """Steps of the run, and why."""
    if recipe.learner.bound(recipe.objective).fits_at_once:
        return 1, f"method {recipe.learner.name} fits all rows at once"
    duration, tokens = Duration.parse(recipe.train.duration), facts.data.tokens
    if duration.unit == "steps":
        return int(duration.count), source
    if duration.unit == "epochs":
        steps = max(1, math.ceil(round(duration.count * per_epoch, 6)))  # 0.07 * 100 is 7.000000000000001
        return steps, f"{recipe.train.duration} x {per_epoch} steps ({source})"
    steps = max(1, math.ceil(duration.count * per_epoch / tokens))
    return steps, f"{recipe.train.duration} / {tokens / per_epoch:.0f} tokens a step ({source})"


def _decide_checkpointing(recipe: Recipe, facts: Facts, source: Where, decide: Decide, values: dict[str, Any]) -> bool:
    asked = recipe.train.activation_checkpointing
    reason = recipe.learner.checkpointing_constraint()
    if reason is not None:
        if asked is True:
            raise RecipeError([Problem("train.activation_checkpointing", f"{reason}. Set it to false.")])
        decide("activation_checkpointing", False, reason)
        return False
    if asked != "auto":
        decide("activation_checkpointing", asked, source("train.activation_checkpointing"))
        return asked
    memory = estimate_memory(recipe, facts, **types_of(values), tokens=longest_of(facts, values), checkpointing=False)
    needed, there = sum(memory.values()), memory_of_a_process(facts, values["num_processes"])
    on = needed > 0.8 * there
    why = f"auto: one example needs about {needed / 2**30:.1f} of {there / 2**30:.1f} GiB without it"
    decide("activation_checkpointing", on, why)
    return on


def _decide_optimizer(recipe: Recipe, facts: Facts, source: Where, decide: Decide, values: dict[str, Any]) -> None:
    train, method = recipe.train, recipe.learner
    _refuse_optimizer(train.optimizer, values["device"])
    decide("optimizer", train.optimizer, source("train.optimizer"))
    if train.learning_rate == "auto":
        at = "" if method.learning_rate_power == 0 else f" at width {facts.model.width}"
        evidence = f"auto: default of method {method.name}{at} ({method.learning_rate_evidence})"
        decide("learning_rate", method.default_learning_rate(facts.model.width), evidence)
    else:
        decide("learning_rate", float(train.learning_rate), source("train.learning_rate"))
    decide("schedule", train.schedule, source("train.schedule"))
    if is_share(train.warmup):
        warmup = min(steps_of(train.warmup, values["steps"]), values["steps"])
        decide("warmup_steps", warmup, f"{train.warmup} of {values['steps']} steps ({source('train.warmup')})")
    else:
        decide("warmup_steps", min(int(train.warmup), values["steps"]), source("train.warmup"))
    decide("weight_decay", float(train.weight_decay), source("train.weight_decay"))
    decide("max_grad_norm", train.max_grad_norm, source("train.max_grad_norm"))


def _refuse_optimizer(name: str, device: str) -> None:
    """Check that the optimizer does on this device what its name says.

    Raises:
        RecipeError: it does not.
    """
    works = {"paged_adamw_8bit": ("cuda",), "adamw_8bit": ("cuda", "cpu")}.get(name)
    if works is None or device in works:
        return
    if device == "cpu":
        message = (
            "paged_adamw_8bit moves its state between a card and the machine, and there is no card. Use adamw_8bit."
        )
    else:
        message = f"{name} works on {' and '.join(works)}, and this is a {device} device. Use adamw or adafactor."
    raise RecipeError([Problem("train.optimizer", message)])


def _decide_cadences(recipe: Recipe, facts: Facts, source: Where, decide: Decide, values: dict[str, Any]) -> None:
    steps, held = values["steps"], facts.data.eval_examples > 0

    def cadence(key: str, value: int | str | None, needed: bool = True) -> tuple[int | None, str]:
        if value is None or not needed:
            return None, source(key) if needed else "there is no data.eval"
        why = f"{value} of {steps} steps ({source(key)})" if is_share(value) else source(key)
        return steps_of(value, steps), why

    stopping = recipe.train.early_stopping or EarlyStopping(patience=None)
    limited = stopping.max_forgetting is not None and bool(recipe.eval.guard)
    decide("eval_every", *cadence("eval.every", recipe.eval.every, held or limited))
    decide("generate_every", *cadence("eval.generate_every", recipe.eval.generate_every, held))
    decide("eval_batch_size", values["micro_batch_size"], "as large as a micro-batch")
    if recipe.eval.metrics == "auto":
        decide("metrics", recipe.method.default_metrics(recipe.objective), f"auto: by {recipe.method.name}")
    else:
        decide("metrics", tuple(dict.fromkeys(["loss", *recipe.eval.metrics])), source("eval.metrics"))
    decide("checkpoint_every", *cadence("checkpoint.every", recipe.checkpoint.every))
    decide("keep", recipe.checkpoint.keep, source("checkpoint.keep"))
    why = source("checkpoint.best") if held else "there is no data.eval"
    decide("best", recipe.checkpoint.best if held else None, why)
    why = source("train.early_stopping")
    decide("patience", *((stopping.patience, why) if held else (None, "there is no data.eval")))
    decide("min_delta", float(stopping.min_delta), why)
    limit = parse_share(stopping.max_forgetting) if stopping.max_forgetting is not None and limited else None
    decide("max_forgetting", limit, why if recipe.eval.guard else "there is no eval.guard")


def _decide_sizes(recipe: Recipe, facts: Facts, decide: Decide, values: dict[str, Any]) -> None:
    model = facts.model
    decide("total_parameters", model.total_parameters, f"counted on {model.architecture}")
    decide("trainable_parameters", model.trainable_parameters, f"counted after attaching {recipe.method.name}")
    memory = estimate_memory(
        recipe,
        facts,
        **types_of(values),
        tokens=values["micro_batch_tokens"] or values["micro_batch_size"] * longest_of(facts, values),
        checkpointing=values["activation_checkpointing"],
    )
    needed, there = sum(memory.values()), memory_of_a_process(facts, values["num_processes"])
    verdict = "" if needed < 0.95 * there else "; this will hardly fit"
    why = (
        f"estimate from shapes, {needed / 2**30:.1f} of {there / 2**30:.1f} GiB{verdict}; the report has what was used"
    )
    decide("memory_bytes", memory, why)
    decide("checkpoint_bytes", checkpoint_bytes(recipe, model), "trainable weights and optimizer in fp32")
    decide("disk_bytes", *disk_need(recipe, model, values))
