"""What will happen: a pure function of recipe and facts. Nothing below this file invents a default.

Every value keeps its source, so that `ftune plan` can say where each number came from. On resume the values that the
machine chose are taken from the stored plan, so that a resumed run is the same run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ftune.data.order import steps_per_epoch
from ftune.errors import MachineError, Problem, RecipeError
from ftune.facts import Device, Facts, Machine
from ftune.quantities import Duration, is_share, steps_of
from ftune.recipe import Recipe

Dtype = Literal["fp32", "bf16", "fp16"]
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
LONGEST_BY_DEFAULT = 1024
TOKENS_ON_CPU = 1024
"""Tokens per micro-batch that a CPU works best with; see docs/results.md."""
MACHINE_CHOICES = (
    "packing", "micro_batch_size", "micro_batch_tokens", "eval_batch_size", "precision", "frozen_dtype",
    "activation_checkpointing", "num_threads", "memory_bytes",
)  # fmt: skip
"""Fields that depend on the machine and stay what they were when a run is resumed."""
SAVED_PER_LAYER = 30
"""Numbers that the backward pass needs per token, width and layer of a decoder with LoRA on all linear layers;
Korthikanti et al. 2022 count 17 (eq. 2, without the attention matrix) for a plain one. See docs/results.md."""
OPTIMIZER_STATES = {"adamw": 2.0, "adafactor": 0.05, "sgd": 1.0}
"""fp32 numbers of optimizer state per trainable parameter."""


@dataclass(frozen=True)
class Runtime:
    """How a process computes: the part of a plan that scoring and generation need too."""

    device: Device
    precision: Dtype
    num_processes: int
    num_threads: int
    deterministic: bool


class Plan(BaseModel):
    """Everything a run does, decided. `sources` says where each value came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: Device
    num_processes: int
    num_threads: int
    precision: Dtype
    frozen_dtype: Dtype
    deterministic: bool
    activation_checkpointing: bool
    max_length: int
    batch_size: int
    packing: bool
    micro_batch_size: int
    micro_batch_tokens: int | None
    accumulation: int
    steps: int
    steps_per_epoch: int
    examples: int
    tokens_per_epoch: int
    targets_per_epoch: int
    optimizer: Literal["adamw", "adafactor", "sgd"]
    learning_rate: float
    schedule: Literal["cosine", "linear", "constant"]
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float | None
    eval_every: int | None
    generate_every: int | None
    eval_batch_size: int
    metrics: tuple[str, ...]
    checkpoint_every: int
    keep: int
    best: str | None
    patience: int | None
    min_delta: float
    max_minutes: float | None
    total_parameters: int
    trainable_parameters: int
    memory_bytes: dict[str, int]
    checkpoint_bytes: int
    disk_bytes: int
    seed: int
    sources: dict[str, str]

    @property
    def runtime(self) -> Runtime:
        """Device, precision and processes."""
        return Runtime(self.device, self.precision, self.num_processes, self.num_threads, self.deterministic)

    def to_json(self) -> dict[str, dict[str, Any]]:
        """`{name: {"value": ..., "source": ...}}` for every field."""
        values = self.model_dump(mode="json", exclude={"sources"})
        return {name: {"value": value, "source": self.sources[name]} for name, value in values.items()}

    @classmethod
    def from_json(cls, stored: dict[str, dict[str, Any]]) -> Plan:
        """Read what `to_json` wrote."""
        values = {name: entry["value"] for name, entry in stored.items()}
        return cls(**values, sources={name: entry["source"] for name, entry in stored.items()})

    def continuing(self, stored: Plan, recipe: Recipe) -> Plan:
        """This plan with the choices the machine made when the run began; what the recipe names is the recipe's."""
        anew: set[str] = set()
        if recipe.train.micro_batch_size != "auto":
            anew |= {"micro_batch_size", "micro_batch_tokens", "eval_batch_size", "memory_bytes"}
        if self.packing != stored.packing:
            anew |= {"packing", "micro_batch_tokens"}
        if recipe.train.activation_checkpointing != "auto":
            anew |= {"activation_checkpointing", "memory_bytes"}
        if self.num_processes != stored.num_processes:
            anew |= {"num_threads"}  # the cores are shared by another number of processes
        names = [name for name in MACHINE_CHOICES if name not in anew]
        kept = {name: getattr(stored, name) for name in names}
        size = kept.get("micro_batch_size", self.micro_batch_size)
        most = kept.get("micro_batch_tokens", self.micro_batch_tokens)
        tokens = self.batch_size * self.tokens_per_epoch / self.examples
        kept["accumulation"] = (
            accumulation(self.batch_size, size, self.num_processes)
            if most is None
            else accumulation(math.ceil(tokens), most, self.num_processes)
        )
        notes = {name: stored.sources[name] for name in names}
        return self.model_copy(update={**kept, "sources": {**self.sources, **notes}})


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


def accumulation(batch_size: int, micro_batch_size: int, num_processes: int) -> int:
    """Micro-batches per process and optimizer step, both sizes in examples or in tokens; the last may be short."""
    return math.ceil(math.ceil(batch_size / micro_batch_size) / num_processes)


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


Decide = Callable[[str, Any, str], Any]
Where = Callable[[str], str]


def _decide_machine(recipe: Recipe, facts: Facts, source: Where, decide: Decide) -> None:
    machine = facts.machine
    decide("device", machine.device, "found here")
    devices = recipe.distributed.devices
    if machine.device != "cpu" and devices > machine.num_devices:
        raise MachineError(f"distributed.devices asks for {devices} devices; there are {machine.num_devices} here.")
    decide("num_processes", devices, source("distributed.devices"))
    decide("num_threads", max(1, machine.num_threads // devices), f"{machine.num_threads} cores / {devices} processes")
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
    checkpointing = _decide_checkpointing(recipe, facts, source, decide, values)
    if train.micro_batch_size == "auto":
        size, why = _largest_micro_batch(recipe, facts, values, checkpointing)
        decide("micro_batch_size", size, why)
    else:
        decide("micro_batch_size", train.micro_batch_size, source("train.micro_batch_size"))
    _decide_accumulation(recipe, facts, decide, values)
    per_epoch = steps_per_epoch(data.examples, train.batch_size)
    decide("steps_per_epoch", per_epoch, f"{data.examples} examples / batch_size {train.batch_size}, rounded up")
    decide("steps", *_steps(recipe, facts, per_epoch, source("train.duration")))
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


def _decide_accumulation(recipe: Recipe, facts: Facts, decide: Decide, values: dict[str, Any]) -> None:
    """How much goes into one forward, in examples or in tokens, and how often until a step is full."""
    data, batch, processes = facts.data, recipe.train.batch_size, values["num_processes"]
    size, longest = values["micro_batch_size"], min(facts.data.longest, values["max_length"])
    if not values["packing"]:
        decide("micro_batch_tokens", None, "rows are not packed")
        why = f"batch_size {batch} / (micro_batch_size {size} x {processes} processes), rounded up"
        decide("accumulation", accumulation(batch, size, processes), why)
        return
    if recipe.train.micro_batch_size == "auto" and values["device"] == "cpu":
        most = max(longest, min(TOKENS_ON_CPU, size * longest))
        decide("micro_batch_tokens", most, f"auto: {TOKENS_ON_CPU} on CPU, or the longest example of {longest}")
    else:
        decide("micro_batch_tokens", size * longest, f"{size} examples as long as the longest, of {longest}")
    tokens = math.ceil(batch * data.tokens / data.examples)
    why = f"about {tokens} tokens a step / ({values['micro_batch_tokens']} x {processes} processes), rounded up"
    decide("accumulation", accumulation(tokens, values["micro_batch_tokens"], processes), why)


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
    memory = estimate_memory(recipe, facts, values, micro_batch_size=1, checkpointing=False)
    needed, there = sum(memory.values()), _memory_of_a_process(facts, values)
    on = needed > 0.8 * there
    why = f"auto: one example needs about {needed / 2**30:.1f} of {there / 2**30:.1f} GiB without it"
    decide("activation_checkpointing", on, why)
    return on


def _largest_micro_batch(recipe: Recipe, facts: Facts, values: dict[str, Any], checkpointing: bool) -> tuple[int, str]:
    """The largest power of two that stays under a ceiling and whose memory estimate fills under 60% of the device.

    On CPU the ceiling is 1024 tokens of mean length: more only adds pads and page faults there. Elsewhere it is 64.
    """
    on_cpu = facts.machine.device == "cpu"
    ceiling = int(TOKENS_ON_CPU * facts.data.examples / facts.data.tokens) if on_cpu else 64
    budget = 0.6 * _memory_of_a_process(facts, values)
    share = max(1, math.ceil(recipe.train.batch_size / values["num_processes"]))
    most = max(1, min(ceiling, share))
    size = 1
    while size * 2 <= most:
        memory = estimate_memory(recipe, facts, values, micro_batch_size=size * 2, checkpointing=checkpointing)
        if sum(memory.values()) > budget:
            break
        size *= 2
    return size, f"auto: largest power of two <= {most} within 60% of {budget / 0.6 / 2**30:.1f} GiB"


def _memory_of_a_process(facts: Facts, values: dict[str, Any]) -> float:
    """Bytes; processes on a CPU share its memory."""
    return facts.machine.memory_bytes / (values["num_processes"] if facts.machine.device == "cpu" else 1)


def estimate_memory(
    recipe: Recipe,
    facts: Facts,
    values: dict[str, Any],
    *,
    micro_batch_size: int,
    checkpointing: bool,
    tokens: int | None = None,
) -> dict[str, int]:
    """Bytes on one device, by item. An estimate.

    Activations are counted as `SAVED_PER_LAYER` numbers a token, width and layer, or two when they are recomputed or
    not needed; logits as themselves, their gradient and the copies that picking the supervised positions makes, in
    fp32. `tokens` of one forward are those of a full micro-batch unless they are given.
    """
    model = facts.model
    tokens = tokens or micro_batch_size * min(facts.data.longest, values["max_length"])
    element = BYTES[values["precision"]]
    trainable = model.trainable_parameters
    bits = recipe.learner.quantised_bits or 0.0
    plain = model.total_parameters - trainable - model.quantised_parameters
    predicts_tokens = recipe.objective.encoding not in ("row_labels", "token_labels")
    kept = 2 if checkpointing or not recipe.learner.backpropagates else SAVED_PER_LAYER
    return {
        "frozen weights": int(plain * BYTES[values["frozen_dtype"]] + model.quantised_parameters * bits / 8),
        "trainable weights": trainable * 4,
        "gradients": trainable * 4,
        "optimizer": int(trainable * 4 * OPTIMIZER_STATES[recipe.train.optimizer]),
        "activations": int(tokens * model.width * model.num_layers * element * kept),
        "logits": tokens * model.vocabulary * (element + 16) if predicts_tokens else 0,
    }


def _decide_optimizer(recipe: Recipe, facts: Facts, source: Where, decide: Decide, values: dict[str, Any]) -> None:
    train, method = recipe.train, recipe.learner
    decide("optimizer", train.optimizer, source("train.optimizer"))
    if train.learning_rate == "auto":
        evidence = f"auto: default of method {method.name} ({method.learning_rate_evidence})"
        decide("learning_rate", method.learning_rate, evidence)
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


def _decide_cadences(recipe: Recipe, facts: Facts, source: Where, decide: Decide, values: dict[str, Any]) -> None:
    steps, held = values["steps"], facts.data.eval_examples > 0

    def cadence(key: str, value: int | str | None, needed: bool = True) -> tuple[int | None, str]:
        if value is None or not needed:
            return None, source(key) if needed else "there is no data.eval"
        why = f"{value} of {steps} steps ({source(key)})" if is_share(value) else source(key)
        return steps_of(value, steps), why

    decide("eval_every", *cadence("eval.every", recipe.eval.every, held))
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
    stopping = recipe.train.early_stopping
    decide("patience", None if stopping is None else stopping.patience, source("train.early_stopping"))
    decide("min_delta", 0.0 if stopping is None else float(stopping.min_delta), source("train.early_stopping"))


def _decide_sizes(recipe: Recipe, facts: Facts, decide: Decide, values: dict[str, Any]) -> None:
    model = facts.model
    decide("total_parameters", model.total_parameters, f"counted on {model.architecture}")
    decide("trainable_parameters", model.trainable_parameters, f"counted after attaching {recipe.method.name}")
    memory = estimate_memory(
        recipe,
        facts,
        values,
        micro_batch_size=values["micro_batch_size"],
        checkpointing=values["activation_checkpointing"],
        tokens=values["micro_batch_tokens"],
    )
    decide("memory_bytes", memory, "estimate from shapes; the report compares it with what was used")
    state = int(model.trainable_parameters * 4 * (1 + OPTIMIZER_STATES[recipe.train.optimizer]))
    decide("checkpoint_bytes", state, "trainable weights and optimizer in fp32")
    copies = recipe.checkpoint.keep + 1 + (values["best"] is not None)
    artefact = 4 * (model.trainable_parameters if recipe.learner.own_base is None else model.total_parameters)
    decide("disk_bytes", copies * state + artefact, f"{copies} checkpoints at most at one time, and model/")
