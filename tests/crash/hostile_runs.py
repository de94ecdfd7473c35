"""Runs and adapters that somebody trained: sealed whole, as their maker can, and made to lead elsewhere or run code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence

from artefact import EVAL, TRAIN, Artefact, Place, downloaded, edit, header, pickled, tensor

ADAPTER, SIDECAR, CONFIG = "model/adapter_model.safetensors", "model/ftune.json", "model/adapter_config.json"
LONGER = (*TRAIN, "--set", "train.duration=6 steps")
MERGE = ("merge", "run", "--quiet", "--offline")
LAST = "checkpoints/step_000004"
DEEP = '{"a":' * 50_000


def text(file: str, content: str, code: int = 4, command: Sequence[str] = EVAL) -> Artefact:
    return Artefact(downloaded(lambda place: (place.run / file).write_text(content), command), code)


def weights(file: str, content: bytes, command: Sequence[str] = EVAL) -> Artefact:
    return Artefact(downloaded(lambda place: (place.run / file).write_bytes(content), command), 4)


def adapter(code: int, command: Sequence[str] = EVAL, **values: object) -> Artefact:
    return Artefact(downloaded(lambda place: edit(place.run / CONFIG, **values), command), code)


def recorded(change: Callable[[Place], dict[str, object]], code: int, method: str = "lora") -> Artefact:
    """What the run says its recipe was."""

    def lay(place: Place) -> None:
        values = change(place)
        folder = values.pop("folder", None)
        for name in ("resolved.json", SIDECAR):
            edit(place.run / name, recipe=values, **({} if folder is None else {"folder": folder}))

    return Artefact(downloaded(lay, method=method), code)


def brings(place: Place, **values: object) -> dict[str, object]:
    """Code in the run, beside what is said to be its recipe."""
    place.code(place.run / "evil.py")
    (place.run / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    return {"folder": str(place.run), **values}


def shell(place: Place) -> dict[str, object]:
    """A function of Python itself, and a file whose name is a program."""
    (place.folder / "x;touch canary").write_text("x")
    return {"data": {"train": {"path": "x;touch canary", "loader": "os:system"}, "eval": None}}


def trusted(place: Place) -> dict[str, object]:
    """A base that lies in the run and brings code, with the consent of the run itself."""
    (place.run / "base").mkdir()
    place.code(place.run / "base" / "evil.py")
    wanted = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}}
    (place.run / "base" / "config.json").write_text(json.dumps(wanted))
    return {"model": {"name": str(place.run / "base"), "trust_remote_code": True, "revision": "a" * 40}}


def body(place: Place) -> dict[str, object]:
    """The same inside an artefact that brings its own base."""
    place.code(place.run / "model" / "body" / "evil.py")
    edit(place.run / "model/body/config.json", model_type="evil", auto_map={"AutoConfig": "evil.Evil"})
    return {"model": {"name": "builtin:tiny-llama", "trust_remote_code": True, "revision": "a" * 40}}


def linked(file: str, code: int, command: Sequence[str] = LONGER) -> Artefact:
    """A link to a file or folder of the user's."""

    def change(place: Place) -> None:
        path = place.run / file
        if path.is_dir():
            path.rename(place.outside / path.name)
            path.symlink_to(place.outside / path.name)
        else:
            path.unlink(missing_ok=True)
            path.symlink_to(place.secret)

    return Artefact(downloaded(change, command), code)


def hard_linked(place: Place) -> None:
    """Files that the user's are too, under other names."""
    for name in ("metrics.jsonl", "report.md"):
        (place.run / name).unlink()
        os.link(place.secret, place.run / name)


def pickles(place: Place) -> None:
    for name in ("adapter_model.bin", "optimizer.pt", "training_args.bin"):
        (place.run / "model" / name).write_bytes(pickled(place))


def unsealed(file: str, content: str) -> Artefact:
    """A file that is changed after it was sealed."""

    def make(place: Place) -> Sequence[str]:
        downloaded(lambda _: None)(place)
        (place.run / file).write_text(content)
        return "verify", "run"

    return Artefact(make, 4)


def pickle_at(*files: str, command: Sequence[str] = EVAL) -> Artefact:
    """Pickles under the names of safetensors."""

    def change(place: Place) -> None:
        for file in files:
            (place.run / file).write_bytes(pickled(place))

    return Artefact(downloaded(change, command), 4)


def only_pickles(place: Place) -> None:
    pickles(place)
    (place.run / ADAPTER).unlink()


OF_LAST = ("eval", f"run/{LAST}", *EVAL[2:])
LIBRARY = {"parent_library": "evil", "base_model_class": "Evil"}
RUNS = {
    "pickles beside an adapter": Artefact(downloaded(pickles, MERGE), 0),
    "an adapter that is a pickle": Artefact(downloaded(only_pickles), 4, alone=True, fast=True),
    "a pickle that is named as an adapter": pickle_at(ADAPTER),
    "a checkpoint that is a pickle": pickle_at(f"{LAST}/weights.safetensors", command=OF_LAST),
    "an adapter of another library's class": adapter(0, auto_mapping=LIBRARY),
    "an adapter whose base is a URL": adapter(0, base_model_name_or_path="https://127.0.0.1:9/x"),
    "an adapter whose base is a file": adapter(0, base_model_name_or_path="/etc/passwd"),
    "an adapter of another kind": adapter(4, peft_type="../../evil"),
    "an adapter with modules of its own": adapter(4, modules_to_save=["lm_head", "../../evil"]),
    "an adapter of a rank beyond memory": adapter(4, r=10**9),
    "an adapter with a pattern that never ends": adapter(4, target_modules="(([a-z._0-9]+)+)+!"),
    "a header that lies in an adapter": weights(ADAPTER, header(a=tensor([2**62, 4]))),
    "adapter settings nested too deep": text(CONFIG, DEEP),
    "a sidecar nested too deep": text(SIDECAR, DEEP),
    "a plan nested too deep": text("plan.json", DEEP),
    "a recipe nested too deep": text("resolved.json", DEEP, command=LONGER),
    "a manifest nested too deep": unsealed("model/MANIFEST.json", DEEP),
    "a state nested too deep": text(f"{LAST}/state.json", DEEP, command=LONGER),
    "a state beyond the run": text(f"{LAST}/state.json", '{"step": -1, "epoch": 1e999}', command=LONGER),
    "an optimizer of another run": weights(f"{LAST}/optimizer.safetensors", header(a=tensor([16])), LONGER),
    "a report nested too deep": text("report.json", DEEP, command=("report", "run")),
    "a metric that comes with the run": recorded(
        lambda p: brings(p, eval={"metrics": ["evil:evil"]}), 4
    )._replace(fast=True, alone=True),
    "a loader that comes with the run": recorded(
        lambda p: brings(p, data={"train": {"path": "rows.jsonl", "loader": "evil:evil"}}), 4
    ),
    "a loader of Python itself": recorded(shell, 4),
    "a metric in the current folder": recorded(lambda p: brings(p, folder="run", eval={"metrics": ["evil:evil"]}), 4),
    "a method that comes with the run": recorded(
        lambda p: brings(p, method={"name": "run.evil"}), 4
    )._replace(alone=True),
    "a method that does something else": recorded(lambda p: {"method": {"name": "idlelib.idle"}}, 4),
    "a base that is trusted by the run": recorded(trusted, 10)._replace(fast=True, alone=True),
    "a body that is trusted by the run": recorded(body, 10, "feature_based"),
    "a base elsewhere": recorded(lambda p: {"model": {"name": "../../../../etc"}}, 10),
    "a base that is a URL": recorded(lambda p: {"model": {"name": "https://127.0.0.1:9/x"}}, 10),
    "a base of a hub": recorded(lambda p: {"model": {"name": "evil/evil"}}, 10),
    "a log that is a link": linked("metrics.jsonl", 2)._replace(fast=True, alone=True),
    "a lock that is a link": linked(".lock", 2),
    "checkpoints that are a link": linked("checkpoints", 2),
    "a model that is a link": linked("model", 2),
    "weights of a checkpoint that are a link": linked(f"{LAST}/weights.safetensors", 4, OF_LAST),
    "an adapter that is a link": linked(ADAPTER, 4, MERGE),
    "files that have other names too": Artefact(downloaded(hard_linked, LONGER), 0),
}  # fmt: skip
