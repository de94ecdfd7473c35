"""Base models that somebody published: pickles, code, indices and links that lead elsewhere, headers that lie."""

from __future__ import annotations

import json
import os
import shutil

from artefact import CHATS, Artefact, Place, edit, header, model, pickled, tensor, zipped

EVIL = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer", "AutoProcessor"), "evil.Evil")
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt", "vocab.npy",
          "tokenizer.model", "model.ckpt", ".metadata")  # fmt: skip


def pickles_beside(place: Place) -> None:
    for name in BESIDE:
        (place.base / name).write_bytes(pickled(place))


def instead(*names: str, as_zip: bool = False) -> Artefact:
    """Weights that are a pickle, and no others."""

    def change(place: Place) -> None:
        (place.base / WEIGHTS).unlink()
        for name in names:
            if as_zip:
                zipped(place, place.base / name)
            else:
                (place.base / name).write_bytes(pickled(place))

    return Artefact(model(change), 10)


def index(target: str) -> Artefact:
    """An index that has every weight in `target`; OUTSIDE is a folder with the true weights."""

    def change(place: Place) -> None:
        shutil.copy(place.base / WEIGHTS, place.outside)
        names = json.loads(_header(place)).keys() - {"__metadata__"}
        (place.base / WEIGHTS).unlink()
        (place.base / "evil.bin").write_bytes(pickled(place))
        (place.base / "evil.safetensors").write_bytes(pickled(place))
        where = target.replace("OUTSIDE", str(place.outside)).replace(
            "ASIDE", os.path.relpath(place.outside, place.base)
        )
        written = {"metadata": {}, "weight_map": dict.fromkeys(names, where)}
        (place.base / INDEX).write_text(json.dumps(written))

    return Artefact(model(change), 4)


def _header(place: Place) -> str:
    data = (place.base / WEIGHTS).read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")].decode()


def index_of_pickles(place: Place) -> None:
    names = json.loads(_header(place)).keys() - {"__metadata__"}
    (place.base / WEIGHTS).unlink()
    (place.base / "shard.bin").write_bytes(pickled(place))
    (place.base / "pytorch_model.bin.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "shard.bin")})
    )


def deep_index(place: Place) -> None:
    (place.base / WEIGHTS).unlink()
    (place.base / INDEX).write_text('{"a":' * 50_000)


def code(file: str, **values: object) -> Artefact:
    """Code beside the model, and a file that asks for it; the model is of a kind that needs none of it."""

    def change(place: Place) -> None:
        place.code(place.base / "evil.py")
        (place.base / "custom_generate").mkdir()
        place.code(place.base / "custom_generate" / "generate.py")
        if not (place.base / file).exists():
            (place.base / file).write_text("{}")
        edit(place.base / file, **values)

    return Artefact(model(change), 0)


def weights(content: bytes, code: int = 4) -> Artefact:
    return Artefact(model(lambda place: (place.base / WEIGHTS).write_bytes(content)), code)


def linked(file: str, code: int) -> Artefact:
    """A file of the model that is a link to one of the user's."""

    def change(place: Place) -> None:
        (place.base / file).unlink(missing_ok=True)
        (place.base / file).symlink_to(place.secret)

    return Artefact(model(change, rows=CHATS, data={"template": None}), code)


def pipe(file: str, code: int) -> Artefact:
    """A file that never ends and never begins."""

    def change(place: Place) -> None:
        (place.base / file).unlink(missing_ok=True)
        os.mkfifo(place.base / file)

    return Artefact(model(change), code)


def config(code: int, **values: object) -> Artefact:
    return Artefact(model(lambda place: edit(place.base / "config.json", **values)), code)


def settings(code: int, **values: object) -> Artefact:
    return Artefact(model(lambda place: edit(place.base / "tokenizer_config.json", **values)), code)


def text(file: str, content: str, code: int) -> Artefact:
    return Artefact(model(lambda place: (place.base / file).write_text(content)), code)


def adapter_beside(place: Place) -> None:
    """What makes transformers load another model than the one that was named."""
    shutil.copytree(place.base, place.outside / "other")
    edit(place.outside / "other" / "config.json", vocab_size=7)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(place.outside / "other"), "r": 1}
    (place.base / "adapter_config.json").write_text(json.dumps(config))


MODELS = {
    "pickles beside the weights": Artefact(model(pickles_beside), 0, alone=True, fast=True),
    "a pickle as torch names it": instead("pytorch_model.bin", as_zip=True)._replace(alone=True, fast=True),
    "a pickle as checkpoints are named": instead("model.ckpt", "model.pth"),
    "a pickle as other libraries name it": instead("tf_model.h5", "flax_model.msgpack", "model.npy"),
    "a pickle that is named safetensors": Artefact(
        model(lambda place: (place.base / WEIGHTS).write_bytes(pickled(place))), 4, fast=True
    ),
    "a distributed checkpoint": instead(".metadata", "__0_0.distcp"),
    "an index of pickles": Artefact(model(index_of_pickles), 10),
    "an index of safetensors that names a pickle": index("evil.bin"),
    "an index that names a pickle as safetensors": index("evil.safetensors"),
    "an index that leaves the folder": index("ASIDE/model.safetensors")._replace(fast=True),
    "an index with an absolute name": index("OUTSIDE/model.safetensors"),
    "an index nested too deep": Artefact(model(deep_index), 4),
    "code of a processor": code("processor_config.json", auto_map=EVIL, processor_class="Evil"),
    "code of a preprocessor": code("preprocessor_config.json", auto_map=EVIL, image_processor_type="Evil"),
    "code of generation": code("generation_config.json", custom_generate="evil", auto_map=EVIL),
    "code of a tokenizer of a known kind": code("tokenizer_config.json", auto_map=EVIL),
    "code of another repository": code("config.json", auto_map={"AutoConfig": "evil/code--evil.Evil"}),
    "a kernel of a hub": config(10, attn_implementation="evil/kernel")._replace(alone=True),
    "a quantiser that is not here": config(0, quantization_config={"quant_method": "evil"}),
    "a type that is code": config(4, dtype="load"),
    "an architecture that is a path": config(0, architectures=["../../evil"], _name_or_path="../../evil"),
    "an adapter that leads to another model": Artefact(model(adapter_beside), 4),
    "a vocabulary as large as a disk": config(4, vocab_size=10**12),
    "more layers than memory holds": config(4, num_hidden_layers=10**7),
    "a negative width": config(4, hidden_size=-64),
    "a width of text": config(4, hidden_size="64"),
    "an end that is no token": config(0, eos_token_id=10**9),
    "a token far beyond the vocabulary": settings(0, added_tokens_decoder={str(2**40): {"content": "x"}}),
    "a tokenizer of another class": settings(0, tokenizer_class="os.system"),
    "a tokenizer that reads another file": settings(0, vocab_file="/etc/passwd", tokenizer_file="/etc/passwd"),
    "settings nested too deep": text("tokenizer_config.json", '{"a":' * 50_000, 4),
    "a tokenizer that is a list": text("tokenizer.json", "[]", 4),
    "a header with a name twice": weights(
        (lambda body: len(body).to_bytes(8, "little") + body + bytes(64))(
            b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}'
        )
    ),
    "a negative shape": weights(header(a=tensor([-4, -4]))),
    "a shape that overflows": weights(header(a=tensor([2**62, 4]))),
    "a shape of nothing times everything": weights(header(a=tensor([0, 2**63]))),
    "offsets beyond the file": weights(header(a=tensor([2**20, 2**20], 0, 2**42))),
    "offsets that go back": weights(header(a=tensor([16], 64, 0))),
    "a type that is unknown": weights(header(a=tensor([16], dtype="PICKLE"))),
    "weights that are a link to a secret": linked(WEIGHTS, 4),
    "a configuration that is a link to a secret": linked("config.json", 10),
    "a tokenizer that is a link to a secret": linked("tokenizer.json", 10),
    "a template that is a link to a secret": linked("chat_template.jinja", 3),
    "weights that are a pipe": pipe(WEIGHTS, 10),
    "a configuration that is a pipe": pipe("config.json", 4),
    "a tokenizer that is a pipe": pipe("tokenizer.json", 10),
}  # fmt: skip
