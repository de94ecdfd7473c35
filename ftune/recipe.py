"""The recipe: what the user asked for, as frozen pydantic models.

Every field states meaning, unit and range; `ftune.load` reads a file into a `Recipe`, and nothing is ever written
back into one. A key exists only together with code that obeys it. Off is `null`; either/or is one typed value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from ftune.file_formats import FileFormat
from ftune.hook import parse_hook
from ftune.methods import Method
from ftune.methods.full import Full
from ftune.objectives import Objective
from ftune.objectives.causal_lm import CausalLM
from ftune.quantities import Duration, Slice, parse_share


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    """A validator that keeps the text as written once `parse` accepts it."""

    def check(value: Any) -> Any:
        if isinstance(value, str):
            parse(value)
        return value

    return AfterValidator(check)


def _duration(value: Any) -> Any:
    """A number without a unit gets the same answer as any other text that is no duration."""
    Duration.parse(value if isinstance(value, str) else repr(value))
    return value


PathText = Annotated[str, Field(min_length=1)]
Share = Annotated[str, _checked(parse_share)]
Cadence = Annotated[int, Field(ge=1)] | Share
Split = Annotated[str, _checked(Slice.parse)]

Format = Literal[
    "auto", "text", "prompt_completion", "instruction", "chat", "pairs", "classification", "multi_label", "regression",
    "token_labels", "multiple_choice", "tokens",
]  # fmt: skip
CHOICES = tuple(f"choice{i}" for i in range(10))
COLUMNS = {
    "text": ("text",),
    "prompt_completion": ("prompt", "completion", "system"),
    "instruction": ("instruction", "input", "output", "system"),
    "chat": ("messages", "role", "content", "tools"),
    "pairs": ("source", "target"),
    "classification": ("text", "text_pair", "label"),
    "multi_label": ("text", "text_pair", "labels"),
    "regression": ("text", "text_pair", "label"),
    "token_labels": ("tokens", "tags"),
    "multiple_choice": (
        "question", "context", "choices", *CHOICES, "answer", "answer_index", "answer_letter", "answer_text",
    ),
    "tokens": ("input_ids", "labels", "loss_mask"),
}  # fmt: skip
"""Our names for the columns of each format; the first of them is always required."""
MESSAGE_KEYS = frozenset({"role", "content"})
"""Of these names, those of keys inside a message."""


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Model(Section):
    """Which pretrained model, and how its frozen weights are kept."""

    name: Annotated[str, Field(min_length=1)]
    """Hub id, local folder (relative to the recipe, starting with ./ or ../, or absolute), `builtin:NAME`, or a
    finished run whose result is the start."""
    revision: str | None = None
    """Commit, tag or branch of a hub id; resolved once and recorded in the run. Null takes the default branch."""
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Storage of frozen weights; `auto` takes the device's fastest type. What learns is always fp32."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run; true needs a 40-hex `revision`."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes the architecture only and draws the weights from the seed."""


class Source(Section):
    """One source of rows, when a path alone does not say enough."""

    path: PathText
    """File, glob or hub id; files are relative to the recipe. With a `loader`, also a folder."""
    loader: Annotated[str, _checked(parse_hook)] | None = None
    """`module:function` of your own, called with the path, that yields one dict a row: for shapes that no format
    covers. The module is a file beside the recipe, or installed."""
    file_format: FileFormat | None = None
    """What the file holds; null goes by its ending, of which `.gz` and `.zst` are taken off first. `lines` is one row
    a line, in the column `text`; `txt` is one document a file."""
    header: Annotated[list[str], Field(min_length=1)] | None = None
    """Column names of a csv or tsv that has none: its first line is a row."""
    quoting: bool | None = None
    """Whether quotes enclose fields of a csv or tsv; if not, they are letters. Null: yes in csv, no in tsv."""
    values: dict[str, str | int | float | bool] = {}
    """Columns that have the same value in each row of this source: `{label: positive}`."""
    split: Split = "train"
    """Split of a hub set and a range of rows: `train`, `test[:400]`, `[10%:]`; files have the range only."""
    subset: str | None = None
    """Configuration of a hub set that has several, such as `main` of openai/gsm8k."""
    revision: str | None = None
    """Commit of a hub set."""
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often an epoch sees each row, in `data.train`: 0.25 is a quarter of the rows, another one each epoch, 2 is
    every row twice. Mixes general text into domain text, or lets a small set count more."""
    format: Format | None = None
    """Row format of this source; null takes `data.format`."""
    columns: dict[str, str] | None = None
    """Column names of this source, ours to theirs; null takes `data.columns`."""


Sources = Annotated[list[PathText | Source], Field(min_length=1)]


class Data(Section):
    """Where rows come from and how they become tokens."""

    train: PathText | Source | Sources
    """Path relative to the recipe that is run, glob, hub id, a block with `path` and `split`, or a list of these."""
    eval: PathText | Source | Sources | None = None
    """Like `train`; or a share of train such as `5%`, split by group after exact de-duplication; or null."""
    test: PathText | Source | Sources | None = None
    """Like `train`; scored once, at the end."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of what is held out and scored; null takes `seed`. Name it to compare other seeds on the same rows."""
    group_by: Annotated[str, Field(min_length=1)] | None = None
    """With a share in `eval`: a column of the file; rows with the same value stay on one side. Null groups rows with
    the same first question, or the same document."""
    stratify: bool = False
    """With a share in `eval`: keep each label's share in the held-out rows, as near as whole groups allow; numbers of
    regression by tenths. For rows with labels."""
    near_duplicates: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] | None = "auto"
    """How alike two rows of different splits are that count as the same: Jaccard similarity of their words and pairs of
    words, above 0 and at most 1. `auto` is 0.8 for up to 100,000 rows; null looks for equal rows only."""
    leakage: Literal["warn", "drop", "error"] = "warn"
    """What happens to training rows that are also in eval or test: counted and named, left out (and counted), or an
    error. Rows of eval that are in test are counted, or an error."""
    format: Format = "auto"
    """Row format; `auto` decides by column names where that is unambiguous, and prints its choice."""
    columns: dict[str, str] = {}
    """Names of columns, ours to theirs: `{prompt: question, completion: answer}`. Dots lead inside:
    `{source: translation.en}`. Of chats, `role` and `content` are keys of a message."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = {}
    """Names of roles in chats, theirs to ours: `{customer: user, agent: assistant}`; the usual ones are known."""
    template: Annotated[str, Field(min_length=1)] | None = None
    """Jinja (sandboxed) that renders a prompt from the row's columns or, if it uses `messages`, a whole conversation.
    Null takes the tokenizer's chat template when it has one, else the text as it is."""
    train_on: Literal["completion", "last", "all"] = "completion"
    """Supervised part: every completion or assistant turn, the last one, or every token."""
    system: Literal["template", "merge_into_user"] = "template"
    """Where the system text of a chat goes: `template` leaves it to the chat template; `merge_into_user` puts it before
    the words of the first user message, for models whose template refuses a system role."""
    max_length: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """Longest example in tokens; `auto` is the smaller of 1024 and the model's limit."""
    overlong: Literal["error", "drop", "truncate_prompt", "truncate", "split"] | None = None
    """What happens to rows longer than `max_length`, always counted. Null: `split` for text, else `error`."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to rows that cannot be read or rendered: `error` names them and stops, `skip` leaves them out,
    counted and named, as long as `max_dropped` allows."""
    max_dropped: Share = "1%"
    """At most this share of the rows of each split may be left out, for any reason but exact repetition; above 0%, up
    to 100%."""
    packing: Literal["auto"] | bool = "auto"
    """Whether the rows of a step are laid end to end instead of side by side with pads, never seeing each other; `auto`
    does so where a trial of the model's architecture finds them isolated."""


class EarlyStopping(Section):
    """Stop when the evaluation no longer improves, or when the model forgets."""

    patience: Annotated[int, Field(ge=1)] | None = 3
    """Evaluations without improvement before the run stops; >= 1. Null does not look at improvement."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest fall of the watched loss that counts as improvement; nats per token, >= 0."""
    max_forgetting: Share | None = None
    """Stop when the loss of a set in `eval.guard` has risen by more than this share of its value before training; the
    sets are scored at each evaluation, and a step beyond the limit is never the best. Null does not stop for it."""


Optimizer = Literal["adamw", "muon", "adafactor", "sgd", "adamw_8bit", "paged_adamw_8bit"]


class Train(Section):
    """How long, how fast, in what precision."""

    duration: Annotated[str, BeforeValidator(_duration)] = "3 epochs"
    """`3 epochs`, `500 steps` or `2_000_000 tokens`."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """A cap for this start, in minutes of training: saves and stops; the same command goes on."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Examples per optimizer step over all devices; >= 1."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Examples per forward on one device; accumulation follows. `auto` counts tokens, by a formula over memory and
    shapes, cuts the rows of a step so that little is padded, and takes half as many where memory does not suffice."""
    learning_rate: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Peak learning rate, >= 0; `auto` is the method's default."""
    optimizer: Optimizer = "adamw"
    """`adamw` (betas 0.9, 0.999), `muon` (momentum 0.95, made orthogonal, for matrices of hidden layers, at AdamW's
    rates; AdamW for the rest), `adafactor` (factored second moment, little memory), `sgd` (momentum 0.9), or
    `adamw_8bit` and `paged_adamw_8bit` of bitsandbytes: state of 4096 numbers or more in 8 bits, and, when paged (CUDA
    only), in memory that moves off the card when it is short."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after warm-up: to zero along a cosine or a line, or constant."""
    warmup: Annotated[int, Field(ge=0)] | Share = "3%"
    """Steps of linear warm-up, as a number or a share of the run."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices; vectors (biases, norms) have none. >= 0."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Gradients are scaled down to this norm; null leaves them."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of computation; `auto` is bf16 where the device computes faster in it, else fp32."""
    activation_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass to save memory; `auto` decides from the memory estimate."""
    deterministic: bool = False
    """Bit-equal repeats on CUDA, at some cost; runs on CPU always are."""
    compile: Literal["auto"] | bool = False
    """Let torch's compiler merge what a block does beside products and attention; the first start waits for it. `auto`
    does so where the run is long enough to win that back. Needs a C++ compiler."""
    max_skipped_steps: Annotated[int, Field(ge=0)] = 0
    """Steps whose loss or gradient is not finite that are passed over without an update; one more ends the run."""
    early_stopping: EarlyStopping | None = None
    """Stop early; needs `data.eval`, or `eval.guard` for `max_forgetting`."""


class Eval(Section):
    """When and what to measure on `data.eval`."""

    every: Cadence = "10%"
    """Steps between evaluations, or a share of the run; also before the first step and after the last."""
    max_rows: Annotated[int, Field(ge=1)] | None = 500
    """Score at most this many rows of `data.eval`, and of each `guard` set, chosen by the seed; null takes all."""
    metrics: Literal["auto"] | Annotated[list[str], Field(min_length=1)] = "auto"
    """`auto` is what one forward pass yields; name `exact_match` to compare generated answers as well.
    `module:function`, a file beside the recipe or installed, is one of your own: it gives each row a number."""
    generate_every: Cadence | None = None
    """Steps between evaluations that also generate, a multiple of `every`; null generates only at the end."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest generated answer, in tokens."""
    shots: list[Annotated[int, Field(ge=0)]] = []
    """Before training, score the base model on eval and test rows with so many training rows in its prompt, such as
    [0, 4]; the report shows it beside the tuned model."""
    guard: list[PathText | Source] = []
    """Other rows, such as general text, scored before and after training: what the model forgot, in the report."""


class Checkpoint(Section):
    """When to save, and what to keep."""

    every: Cadence = "10%"
    """Steps between checkpoints, or a share of the run. A new best and the last step always save."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept; the best is kept besides."""
    best: Literal["eval_loss"] | None = "eval_loss"
    """What makes a checkpoint the best, smaller being better; null makes `model/` the last. Needs `data.eval`."""


class Distributed(Section):
    """Processes that share the work."""

    devices: Annotated[int, Field(ge=1)] = 1
    """Devices (on CPU: processes) on this machine; above 1, `ftune train` starts one process for each."""


class Recipe(Section):
    """A whole recipe."""

    model: Model
    """Which pretrained model."""
    objective: SerializeAsAny[Objective] = CausalLM()
    """From what signal the weights learn."""
    method: SerializeAsAny[Method] = Full()
    """Which weights learn."""
    data: Data
    """Rows and how they become tokens."""
    train: Train = Train()
    """Duration, batch, learning rate, precision."""
    eval: Eval = Eval()
    """Evaluation."""
    checkpoint: Checkpoint = Checkpoint()
    """Saving."""
    distributed: Distributed = Distributed()
    """Processes."""
    tracking: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = []
    """Where metrics go besides `metrics.jsonl`; needs the extra `trackers`."""
    output_dir: Annotated[str, Field(min_length=1)] = "runs/{recipe}"
    """Run folder, relative to the current directory; `{recipe}` is the recipe file's name."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of everything random; 0 to 2**63 - 1."""

    @property
    def learner(self) -> Method:
        """The method that holds the weights: `method`, or what a preset such as `domain` is laid over."""
        return self.method.learner

    @property
    def data_seed(self) -> int:
        """Seed of what is held out and scored."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def formats(self) -> frozenset[str]:
        """Row formats that objective and method learn from."""
        return self.method.accepts(self.objective.formats)


def sources(value: str | Source | list[str | Source] | None) -> list[Source]:
    """`data.train`, `data.eval` or `data.test` as a list of blocks."""
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    return [Source(path=item) if isinstance(item, str) else item for item in items]
