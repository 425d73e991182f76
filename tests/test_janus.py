"""Janus: published layouts in and out, what is refused, and the whole loop on a tiny one."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusForConditionalGeneration
from transformers.models.janus.modeling_janus import JanusVQVAE

from core.errors import UserError
from models import registry
from models.families.janus.config import HF_TYPE, OWN, JanusConfig
from models.families.janus.convert import hf_sizes, load_checkpoint, to_hf, to_published
from models.families.janus.model import VQ, JanusModel
from models.families.janus.network import Janus
from models.families.janus.prompts import Ids
from models.families.janus.sampler import FixedSteps, code_step, generate_images
from models.memory import Sizes
from models.protocol import Autoregressive, TextSampling
from models.samplers.noise import RecordNoise
from models.weights import without_values
from tests.commands import hermesflow
from tests.hub import COMMIT, ID, hub_of
from tests.janus_tiny import KEYS, fixture, published_folder, random_janus, tiny_janus
from tests.limits import run_python
from tests.published import save_weights
from tests.showo_tiny import tiny_model
from tests.stage_inputs import make_config
from tests.test_train import Loop, metrics

MODEL = tiny_janus()
PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 29, 3), dtype=np.uint8))
    for i in range(3)
]
HOW = Autoregressive(guidance=1.5, temperature=0.9)


def weights_of(names: Iterable[str]) -> set[str]:
    """Those of weight files in a folder."""
    return {n for n in names if n.endswith((".safetensors", ".bin")) and "/" not in n}


def same(one: JanusModel, other: JanusModel) -> bool:
    """All weights bit by bit, and what is drawn and said."""
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        mine.keys() == theirs.keys()
        and all(torch.equal(mine[name].float(), theirs[name].float()) for name in mine)
        and np.array_equal(*(m.generate(["a cat"], 2, HOW, [3]) for m in (one, other)))
        and one.caption(one.see(PICTURES), [TextSampling(1.0, 1, 5)], [0] * 3)
        == other.caption(other.see(PICTURES), [TextSampling(1.0, 1, 5)], [0] * 3)
    )


# Published layouts


@pytest.mark.parametrize(
    "layout", ["model.safetensors", "pytorch_model.bin", "shards.safetensors", "shards.bin"]
)
def test_published_layouts_come_in_and_go_out_bit_by_bit(tmp_path: Path, layout: str) -> None:
    folder = published_folder(tmp_path / "published", layout)
    arguments = ["import", "janus", "--janus", str(folder), "--to"]
    assert hermesflow([*arguments, str(tmp_path / "ours")]) == 0
    model = JanusModel.from_pretrained(tmp_path / "ours", dtype=None)
    assert same(JanusModel.from_pretrained(tmp_path / "ours"), MODEL)
    assert next(model.network.parameters()).dtype == torch.float16
    out = tmp_path / "out"
    arguments = ["export", str(tmp_path / "ours"), "--to"]
    assert hermesflow([*arguments, str(out)]) == 0
    written, wanted = load_file(out / "model.safetensors"), fixture().weights
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert not (out / "published").exists()  # what is kept there is among the weights again
    assert same(load_checkpoint(out, dtype="float32"), MODEL)


def test_roles_are_named_at_import(tmp_path: Path) -> None:
    """Plain words for Janus-1.3B, from both layouts."""
    prompts = {row.get("roles"): row["ids"] for row in fixture().prompting["gen"]}
    published = published_folder(tmp_path / "published", "model.safetensors")
    MODEL.save_pretrained(tmp_path / "hf")
    for number, folder in enumerate((published, tmp_path / "hf")):
        arguments = ["import", "janus", "--roles", "User/Assistant", "--janus"]
        assert hermesflow([*arguments, str(folder), "--to", str(tmp_path / f"{number}")]) == 0
        model = JanusModel.from_pretrained(tmp_path / f"{number}")
        assert model.tokenizer.prompt("a red cat").tolist() == prompts["User/Assistant"]


def test_transformers_loads_our_folder_and_we_load_its(tmp_path: Path) -> None:
    """The same logits of a text and of codes."""
    MODEL.save_pretrained(tmp_path / "ours")
    theirs = JanusForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert not torch.equal(theirs.lm_head.weight, theirs.get_input_embeddings().weight)
    ids_1T = torch.arange(3, 190, 7)[None]
    positions_1T = torch.arange(ids_1T.shape[1])[None]
    with torch.inference_mode():
        hidden_1TD = MODEL.network(ids_1T, None, positions_1T)
        ours = MODEL.network.logits(hidden_1TD)
        torch.testing.assert_close(ours, theirs(input_ids=ids_1T).logits, rtol=0, atol=5e-5)
        codes = MODEL.network.code_logits(hidden_1TD)
        torch.testing.assert_close(
            codes, theirs.model.generation_head(hidden_1TD), rtol=0, atol=5e-5
        )
    theirs.save_pretrained(tmp_path / "theirs")
    MODEL.tokenizer.save_pretrained(tmp_path / "theirs")
    MODEL.config.preprocessing.to_json(tmp_path / "theirs/preprocessor_config.json")
    found = load_checkpoint(tmp_path / "theirs")
    assert same(found, MODEL)


# Beside the weights of a repository, and not needed: other formats, other precisions, notes.
OTHERS = (
    "README.md",
    "tf_model.h5",
    "onnx/model.onnx",
    "fp16/model.safetensors",
    "ema.safetensors",
)


@pytest.mark.parametrize(
    ("layout", "weights"),
    [
        ("published", "shards.bin"),
        ("transformers", "shards.safetensors"),
        pytest.param("published", "shards.safetensors", marks=pytest.mark.slow),
        pytest.param("transformers", "shards.bin", marks=pytest.mark.slow),
        pytest.param("transformers", "model.safetensors", marks=pytest.mark.slow),
    ],
)
def test_of_a_repository_of_the_hub_the_needed_files_are_fetched(
    tmp_path: Path, layout: str, weights: str
) -> None:
    folder = tmp_path / "hub"
    if layout == "published":
        published_folder(folder, weights)
    else:
        load_checkpoint(published_folder(tmp_path / "p", "shards.bin")).save_pretrained(folder)
        tensors = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        save_weights(tensors, folder, weights)
    needed = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    others = [*OTHERS, *(["pytorch_model.bin"] if "safetensors" in weights else [])]
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not needed")
    to = tmp_path / "ours"
    given = ["import", "janus", "--janus", f"{ID}@main", "--to", to]
    with hub_of(folder, "models") as (address, sent):
        where = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = run_python("-m", "flows.cli", *given, **where)
    assert done.returncode == 0, done.stderr
    assert sent == needed
    assert same(JanusModel.from_pretrained(to), MODEL)
    origin = json.loads((to / "origin.json").read_text())["janus"]
    assert (origin["given"], origin["commit"]) == (f"{ID}@main", COMMIT)
    assert set(origin["sha256"]) == {"tokenizer.json", *weights_of(needed)}


@pytest.mark.parametrize("name", ["Janus-1.3B, Janus-Pro-1B", "Janus-Pro-7B"])
def test_full_size_networks_have_exactly_the_published_tensors(name: str) -> None:
    published = json.loads(KEYS.read_text())[name]
    path = Path("config.json")
    config = JanusConfig.from_sizes(hf_sizes(published["config"], path), path)
    with without_values():
        network, vq = Janus(config), JanusVQVAE(config.vq)
    tensors = network.state_dict() | {VQ + n: t for n, t in vq.state_dict().items()}
    ours = {n: list(t.shape) for n, t in to_published(tensors)}
    unused = {n for n in published["tensors"] if ".attn_pool." in n or n.endswith("codebook_used")}
    assert ours == {n: s for n, s in published["tensors"].items() if n not in unused}
    assert config.num_codes == config.num_features == 576


def test_names_are_mapped_both_ways() -> None:
    used = {n: t for n, t in fixture().weights.items() if ".attn_pool." not in n}
    used.pop("gen_vision_model.quantize.codebook_used")
    there: dict[str, torch.Tensor] = {}
    for name, tensor in used.items():
        there |= to_hf(name, tensor)
    back = dict(to_published(there))
    assert back.keys() == used.keys()
    assert all(torch.equal(back[name], used[name]) for name in used)


# What is refused


def test_folders_of_other_families_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    MODEL.save_pretrained(tmp_path / "janus")
    tiny_model().save_pretrained(tmp_path / "showo")
    with pytest.raises(UserError, match=r"holds a model of Janus, but model.family = 'showo'"):
        registry.load_model("showo", tmp_path / "janus", "cpu")
    with pytest.raises(UserError, match=r"holds a model of Show-o, but .* set it to showo"):
        registry.check_folder("janus", tmp_path / "showo")
    published = published_folder(tmp_path / "published", "shards.bin")
    with pytest.raises(UserError, match=r"published layout .* `hermesflow import janus`"):
        registry.check_folder("janus", published)
    to = ["--to", str(tmp_path / "x")]
    assert hermesflow(["import", "janus", *to, "--janus", str(tmp_path / "showo")]) == 2
    assert "showo holds a model of Show-o, but FAMILY = 'janus'" in capsys.readouterr().err
    for folder in (published, tmp_path / "janus"):
        parts = ("--show-o", "--vq", "--tokenizer")
        given = [word for part in parts for word in (part, str(folder))]
        assert hermesflow(["import", "showo", *to, *given]) == 2
        assert "a model of Janus, but FAMILY = 'showo'; set it to janus" in capsys.readouterr().err
    assert hermesflow(["export", *to, str(tmp_path)]) == 2
    assert f"{tmp_path}/config.json" in capsys.readouterr().err


def test_damaged_checkpoints_are_named_before_any_work(tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        MODEL.save_pretrained(tmp_path / name)
        return tmp_path / name

    def problem(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            registry.check_folder("janus", folder)
        return str(error.value)

    folder = broken("reads only")
    weights = load_file(folder / "model.safetensors")
    kept = {n: t for n, t in weights.items() if "generation" not in n and "vqmodel" not in n}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert "no model.generation_embeddings, model.generation_head, model.vqmodel" in problem(folder)

    folder = broken("tokenizer")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("<begin_of_image>", "<something>")
    tokenizer["model"]["vocab"].pop("<begin_of_image>", None)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert f"{folder / 'tokenizer.json'} lacks <begin_of_image>" in problem(folder)

    folder = broken("pixels")
    path = folder / "preprocessor_config.json"
    path.write_text(path.read_text().replace("24", "48"))
    assert "pictures of 48 pixels, but the vision tower in config.json reads 24" in problem(folder)

    folder = broken("sizes")
    stored = json.loads((folder / "config.json").read_text())
    stored["vision_config"]["image_size"] = 26
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "preprocessor_config.json").unlink()
    assert "image_size = 26 is no multiple of patch_size = 4" in problem(folder)


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        (("text_config", "num_hidden_layers"), 9, "54 missing: model.language_model.layers.3."),
        (("text_config", "num_hidden_layers"), 1, "18 unknown: model.language_model.layers.1."),
        (("text_config", "num_hidden_layers"), "many", "expected int, got str (value: 'many')"),
        (("text_config", "vocab_size"), 999, "lm_head.weight is [232, 64] instead of [999, 64]"),
        (("vision_config", "image_size"), 48, "position_embedding.weight is [36, 48] instead of"),
        (("vq_config", "num_embeddings"), 7, "generation_embeddings.weight is [96, 8] instead of"),
        (("vq_config", "base_channels"), 64, "decoder.conv_in.bias is [64] instead of [128]"),
        (("vq_config", "channel_multiplier"), [], "vq_config.channel_multiplier = 0"),
        ((OWN,), 3, "config.json: hermesflow = 3 is no object"),
    ],
)
def test_wrong_sizes_are_named_before_any_work(
    tmp_path: Path, where: Sequence[str], value: object, expected: str
) -> None:
    MODEL.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    stored = json.loads((tmp_path / "config.json").read_text())
    reduce(getitem, where[:-1], stored)[where[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=re.escape(expected)):
        registry.check_folder("janus", tmp_path)


@pytest.mark.parametrize("content", [3, {"sizes": 3}, {"sizes": {"vision_config": [1]}}])
def test_settings_in_a_published_config_that_are_none_are_named(
    tmp_path: Path, content: object
) -> None:
    folder = published_folder(tmp_path / "published", "model.safetensors")
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stored | {OWN: content}))
    with pytest.raises(UserError, match=r"config.json: \w+ = .* is no object"):
        load_checkpoint(folder)


# What is drawn


PROMPTS = [MODEL.tokenizer.prompt(text) for text in ("a red cat", "two blue squares and a circle")]


def drawn(
    how: Autoregressive, steps: FixedSteps | None, prompts: Sequence[Ids] = PROMPTS
) -> Tensor:
    noise = RecordNoise(range(len(prompts)), 2, MODEL.config.num_codes, 1, MODEL.device)
    return generate_images(MODEL.network, prompts, 2, how, noise, MODEL.tokenizer, steps)


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_steps_of_one_shape_draw_the_codes_of_growing_keys(guidance: float) -> None:
    """Also where the cache still holds the batch before, whose prompts were longer."""
    how = Autoregressive(guidance=guidance, temperature=0.9)
    steps = FixedSteps(code_step)
    for prompts in (PROMPTS, PROMPTS[:1] * 2):
        assert torch.equal(drawn(how, steps, prompts), drawn(how, None, prompts))


def test_a_step_of_one_shape_is_compiled_once() -> None:
    """For all codes of a picture, and for further batches with prompts of other lengths."""
    inputs: list[int] = []

    def step(*given: Any) -> Tensor:
        inputs.append(len(inputs))
        if len(inputs) == 3:
            torch.compiler.set_stance("fail_on_recompile")
        return compiled(*given)

    compiled = torch.compile(code_step, backend="eager", fullgraph=True, dynamic=False)
    steps = FixedSteps(step)
    try:
        for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS[:1] * 2):
            assert torch.equal(drawn(HOW, steps, prompts), drawn(HOW, None, prompts))
    finally:
        torch.compiler.set_stance("default")
    assert len(inputs) == 3 * (MODEL.config.num_codes - 1)


def test_pictures_are_drawn_where_nothing_can_be_compiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> Tensor:
        raise RuntimeError("no C compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken)
    steps = FixedSteps.compiled()
    assert torch.equal(drawn(HOW, steps), drawn(HOW, None))
    assert [record.message for record in caplog.records] == [
        "pictures are drawn without torch.compile, which failed: no C compiler"
    ]


# What is read and trained


def test_a_tower_that_learns_reads_pixels_and_gets_a_gradient(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    model = JanusModel.from_pretrained(tmp_path)
    frozen = model.see(PICTURES)
    model.train_vision()
    bytes_of = model.see(PICTURES)
    assert (frozen.rows.dtype, bytes_of.rows.dtype) == (np.float32, np.uint8)
    samplings = [TextSampling(1.0, 1, 6)]
    assert model.caption(bytes_of, samplings, [0] * 3) == MODEL.caption(frozen, samplings, [0] * 3)
    weights = list(model.network.model.vision_model.parameters())
    assert all(weight.requires_grad for weight in weights)


def test_memory_counts_tower_and_tokenizer_as_not_trained(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    of = registry.family("janus")
    sizes = Sizes.from_folder(tmp_path, of.frozen, of.vision)
    trained = [p for p in MODEL.network.parameters() if p.requires_grad]
    assert sizes.network == sum(p.numel() for p in trained)
    assert sizes.vision == sum(p.numel() for p in MODEL.network.model.vision_model.parameters())
    assert sizes.frozen == sum(t.numel() for t in MODEL.vq.state_dict().values())
    assert JanusConfig.from_json(tmp_path / "config.json").sizes.model_type == HF_TYPE
    assert OWN in json.loads((tmp_path / "config.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"training__lora": {"rank": 2, "alpha": 4}},
        {"model__precision": "bfloat16"},
        {"runtime__recompute": True, "training__objective__combine": "joint"},
    ],
)
def test_a_janus_is_trained_in_every_way(tmp_path: Path, changes: Mapping[str, object]) -> None:
    images = {"sampler": "autoregressive", "num_samples": 2, "guidance": 0.0, "temperature": 1.0}
    fixed = {"model__family": "janus", "sampling__images": images, "training__image_draws": 0}
    trained = Loop(tmp_path, random_janus()).train(make_config(**fixed, **changes))
    first, *_, last = metrics(trained)
    assert first["caption/rewards/margins"] == pytest.approx(0.0, abs=1e-2)
    assert last["caption/rewards/margins"] > 0.1
    JanusModel.from_pretrained(trained.path("model"))


def test_names_of_special_tokens_in_a_long_prompt_are_cut_and_counted() -> None:
    """They are text there, and more tokens than where they are names."""
    use = MODEL.tokenizer.use("<|User|> " * 40 + "a red cat", "prompt")
    special, most = MODEL.tokenizer.special, MODEL.config.settings.max_text_len
    assert use.cut
    assert len(use.ids) <= most + len(MODEL.tokenizer.prompt("a"))
    assert use.ids.count(MODEL.tokenizer.prompt("a")[1]) == 1
    assert (use.ids[0], use.ids[-1]) == (special.bos, special.boi)
