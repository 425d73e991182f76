"""Published weights: what is read, what is refused, and that nothing is lost on the way out."""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from core.errors import UserError
from models.checkpoints.sources import find_tokenizer, find_weights
from models.families.showo.convert import (
    Published,
    load_magvitv2,
    load_published,
    load_tokenizer,
    show_o_config,
    vq_tokens,
)
from models.families.showo.model import ShowoModel
from models.families.showo.network import Showo
from models.families.showo.prompts import SPECIAL_TOKENS, SpecialIds
from models.protocol import MaskPredict
from models.registry import family
from models.tokenizers.magvitv2 import FULL_SIZE, MAGVITv2
from models.weights import Weights, dtype_named, without_values
from tests.commands import hermesflow
from tests.limits import run_python
from tests.published import (
    LAYOUTS,
    PHI,
    SHOW_O,
    published_parts,
    save_tensors,
    save_weights,
    write_json,
)
from tests.showo_tiny import PARITY, tiny_model

MODEL = tiny_model()
COMMIT = "a" * 40


def logits(network: Showo) -> Tensor:
    ids_1T = torch.arange(0, 270, 9)[None]
    with torch.inference_mode():
        return network.logits(network(ids_1T, None, torch.arange(30)[None]))


def arguments(parts: Published, to: Path) -> list[str]:
    return [
        *("import", "showo", "--show-o", str(parts.show_o), "--vq", str(parts.vq)),
        *("--tokenizer", str(parts.tokenizer), "--to", str(to)),
    ]


def same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Same names, shapes, dtypes and bits."""
    return got.keys() == wanted.keys() and all(
        got[name].dtype == wanted[name].dtype and torch.equal(got[name], wanted[name])
        for name in wanted
    )


# What is read


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout_gives_the_same_model(tmp_path: Path, layout: str) -> None:
    model = load_published(published_parts(tmp_path, layout))
    assert model.config == replace(MODEL.config, list_choices=True, max_text_len=128)
    assert torch.equal(logits(model.network), logits(MODEL.network))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    images = [Image.fromarray(pixels)]
    assert (model.encode(images) == MODEL.encode(images)).all()
    assert not any(p.is_meta for p in (*model.network.parameters(), *model.network.buffers()))


@pytest.mark.parametrize("w_clip_vit", [False, True])
@pytest.mark.parametrize(("pixels", "tokens"), [(256, 256), (512, 1024)])
def test_full_size_network_has_exactly_the_published_tensors(
    tmp_path: Path, w_clip_vit: bool, pixels: int, tokens: int
) -> None:
    sizes = {"vocab_size": 58498, "llm_vocab_size": 50295, "codebook_size": 8192}
    stored = SHOW_O | sizes | {"num_vq_tokens": 1024, "w_clip_vit": w_clip_vit}
    write_json(tmp_path / "config.json", stored)
    with without_values():
        vq = MAGVITv2(FULL_SIZE)
    tokenizer = load_tokenizer(PARITY / "tokenizer_tiny")
    config = show_o_config(tmp_path, tmp_path / "none", tokenizer, vq_tokens(vq, pixels))
    assert config.num_vq_tokens == tokens
    assert (config.image_offset, config.mask_token_id) == (50305, 58497)
    assert SpecialIds.from_config(config).mmu == 50301
    with without_values():
        network = Showo(config)
    shapes = {key: list(value.shape) for key, value in network.state_dict().items()}
    published = json.loads((PARITY / "showo_full_keys.json").read_text())
    assert shapes == published["tensors"][f"w_clip_vit_{w_clip_vit}"]


def test_image_tokenizer_without_sizes_is_the_full_size_one(tmp_path: Path) -> None:
    published = json.loads((PARITY / "magvitv2_full_keys.json").read_text())["tensors"]
    shapes = {name: entry["shape"] for name, entry in published.items()}
    one = torch.zeros(())  # expanded, so that the file is small
    tensors = {
        name: torch.zeros(()).expand(shape) if name != "quantize.power_vals" else one
        for name, shape in shapes.items()
    }
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    write_json(tmp_path / "config.json", {"_class_name": "MAGVITv2"})
    with pytest.raises(UserError) as error:
        load_magvitv2(tmp_path)
    # All 382 fit but the one that was made wrong.
    assert "1 of another shape: quantize.power_vals is [] instead of [13]" in str(error.value)
    assert "missing" not in str(error.value)
    assert "unknown" not in str(error.value)


def test_other_resolutions_use_the_same_weights(tmp_path: Path) -> None:
    parts = published_parts(tmp_path)
    small, large = (load_published(parts, resolution=pixels) for pixels in (32, 96))
    assert (small.config.num_vq_tokens, large.config.num_vq_tokens) == (4, 36)
    assert same(small.network.state_dict(), large.network.state_dict())
    codes = large.generate(["a cat"], 1, MaskPredict(2, 2.0), [1])
    assert large.decode(codes[0])[0].size == (96, 96)
    with pytest.raises(UserError, match="resolution = 40 is no multiple of 16 pixels"):
        load_published(parts, resolution=40)


def test_a_training_folder_of_hermesflow_is_read(tmp_path: Path) -> None:
    parts = published_parts(tmp_path)
    for step in (200, 1000):
        shutil.copytree(parts.show_o, tmp_path / f"run/checkpoint-{step}/unwrapped_model")
    model = load_published(replace(parts, show_o=tmp_path / "run/checkpoint-1000"))
    assert torch.equal(logits(model.network), logits(MODEL.network))
    with pytest.raises(UserError, match="give one of its checkpoints, the last is checkpoint-1000"):
        load_published(replace(parts, show_o=tmp_path / "run"))
    shutil.copytree(parts.show_o, tmp_path / "run", dirs_exist_ok=True)
    load_published(replace(parts, show_o=tmp_path / "run"))


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), (None, None)])
@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_dtype_is_chosen_or_kept_as_stored(
    tmp_path: Path, layout: str, dtype: str | None, expected: torch.dtype | None
) -> None:
    network = Showo(MODEL.config)
    network.load_state_dict(MODEL.network.state_dict())
    network.showo.lm_head.half()
    model = load_published(published_parts(tmp_path, layout, network), dtype=dtype)
    head = model.network.showo.lm_head.weight
    assert head.dtype == (expected or torch.float16)
    assert model.network.showo.model.embed_tokens.weight.dtype == (expected or torch.float32)
    assert torch.equal(head, MODEL.network.showo.lm_head.weight.half().to(head.dtype))
    assert {p.dtype for p in model.vq.parameters()} == {torch.float32}


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(UserError, match="dtype = 'int8' is unknown; give one of float32, bfloat16"):
        dtype_named("int8")


@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_a_loaded_model_does_not_depend_on_its_file(tmp_path: Path, layout: str) -> None:
    parts = published_parts(tmp_path, layout)
    model = load_published(parts)
    file = parts.show_o / layout
    file.write_bytes(b"\0" * file.stat().st_size)  # in place: a map would show it
    assert torch.equal(logits(model.network), logits(MODEL.network))


def test_a_model_can_be_saved_over_its_own_folder(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    loaded = ShowoModel.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)
    assert torch.equal(logits(ShowoModel.from_pretrained(tmp_path).network), logits(MODEL.network))


# What is refused


def test_a_pickle_of_other_things_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(1)}}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="not tensors by name alone"):
        Weights(tmp_path)


def test_all_mismatches_are_named_in_one_bounded_error(tmp_path: Path) -> None:
    parts = published_parts(tmp_path)
    tensors = MODEL.network.state_dict()
    layer = "showo.model.layers.2."
    kept = {name: value for name, value in tensors.items() if not name.startswith(layer)}
    kept["showo.lm_head.bias"] = torch.zeros(7)
    kept["mm_projector.0.bias"] = torch.zeros(2)
    save_weights(kept, parts.show_o, "pytorch_model.bin")
    with pytest.raises(UserError) as error:
        load_published(parts)
    message = str(error.value)
    missing = sorted(name for name in tensors if name.startswith(layer))
    assert (
        f"{len(missing)} missing: {', '.join(missing[:8])} and {len(missing) - 8} more" in message
    )
    assert missing[8] not in message
    assert "1 unknown: mm_projector.0.bias" in message
    assert "1 of another shape: showo.lm_head.bias is [7] instead of [275]" in message


@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_cut_off_files_are_named(tmp_path: Path, layout: str) -> None:
    parts = published_parts(tmp_path, layout)
    file = parts.show_o / layout
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match=rf"{layout} .*undamaged copy"):
        load_published(parts)


BIAS = "showo.lm_head.bias"
ELSEWHERE = {BIAS: "../vq/model-00001-of-00003.safetensors"}


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda index: {"weight_map": {**index, BIAS: "lost"}}, "names lost, which is missing"),
        (lambda index: {"weight_map": index | ELSEWHERE}, "shards must lie beside it"),
        (
            lambda index: {"weight_map": {k: v for k, v in index.items() if k != BIAS}},
            "disagree on showo.lm_head.bias",
        ),
        (lambda index: {}, "must hold weight_map"),
    ],
)
def test_a_wrong_index_is_named(
    tmp_path: Path, damage: Callable[[dict[str, str]], object], expected: str
) -> None:
    parts = published_parts(tmp_path, "shards.safetensors")
    path = parts.show_o / "model.safetensors.index.json"
    write_json(path, damage(json.loads(path.read_text())["weight_map"]))
    with pytest.raises(UserError, match=expected):
        load_published(parts)


@pytest.mark.parametrize(
    ("file", "content", "expected"),
    [
        ("show-o/config.json", SHOW_O | {"vocab_size": 276}, "- 1 = 11, but there are 10"),
        ("show-o/config.json", SHOW_O | {"codebook_size": None}, "codebook_size = None"),
        ("phi/config.json", PHI | {"hidden_size": "64"}, "hidden_size = '64'; it must be"),
        ("phi/config.json", [], "phi/config.json holds no object"),
        ("show-o/config.json", SHOW_O | {"llm_vocab_size": 136, "codebook_size": 128}, "has 210"),
        ("show-o/pytorch_model.bin", None, "show-o has no weights"),
        ("phi/tokenizer.json", None, "give the folder of a fast tokenizer"),
        ("phi/tokenizer.json", {"version": 1}, r"tokenizer\.json cannot be read"),
        ("phi/tokenizer_config.json", {}, "no bos or no eos token"),
    ],
)
def test_wrong_parts_are_named(tmp_path: Path, file: str, content: object, expected: str) -> None:
    parts = published_parts(tmp_path)
    (tmp_path / "phi/special_tokens_map.json").unlink()
    if content is None:
        (tmp_path / file).unlink()
    else:
        write_json(tmp_path / file, content)
    with pytest.raises(UserError, match=expected):
        load_published(parts)


def test_an_image_tokenizer_of_another_size_is_refused() -> None:
    config = replace(MODEL.config, codebook_size=128)
    with pytest.raises(UserError, match=r"has 64 codes, config\.json says codebook_size = 128"):
        ShowoModel(Showo(config), MODEL.vq, MODEL.tokenizer)


# Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's files, and no way to the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def cached(hub: Path, hub_id: str, folder: Path) -> None:
    """Put a folder into the cache, as commit COMMIT of branch `main`."""
    repository = hub / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(COMMIT)


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_hub_ids_are_read_from_the_cache_and_their_commit_is_recorded(
    tmp_path: Path, hub: Path, revision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = published_parts(tmp_path / "parts")
    for name in ("show_o", "vq", "tokenizer"):
        cached(hub, f"owner/{name}", getattr(parts, name))
    ids = [f"owner/{name}@{revision}" for name in ("show_o", "vq", "tokenizer")]
    to = tmp_path / "model"
    given = zip(("--show-o", "--vq", "--tokenizer"), ids, strict=True)
    words = [word for pair in given for word in pair]
    assert hermesflow(["import", "showo", *words, "--to", str(to)]) == 0
    origin = json.loads((to / "origin.json").read_text())
    assert [entry["commit"] for entry in origin.values()] == [COMMIT] * 3
    assert [entry["given"] for entry in origin.values()] == ids
    file = parts.show_o / "pytorch_model.bin"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert origin["show_o"]["sha256"] == {"pytorch_model.bin": digest}


def test_what_is_not_cached_needs_the_hub_and_says_so(hub: Path) -> None:
    with pytest.raises(UserError) as error:
        find_weights("--show-o", f"owner/none@{COMMIT}")
    message = str(error.value)
    assert message.startswith(f"--show-o = 'owner/none@{COMMIT}' is not in the local cache")
    assert "HF_HUB_OFFLINE" in message
    assert f"`hf download owner/none --revision {COMMIT}`" in message
    with pytest.raises(UserError, match="or a hub id with its revision, as OWNER/NAME@COMMIT"):
        find_tokenizer("--tokenizer", "owner/none")


def test_a_local_folder_goes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("owner/name@main").mkdir(parents=True)
    source = find_weights("--vq", "owner/name@main")
    assert (source.folder, source.commit) == (Path("owner/name@main"), None)


# In and out


@pytest.mark.parametrize("file_format", ["safetensors", "bin"])
def test_out_and_in_again_is_bit_exact(tmp_path: Path, file_format: str) -> None:
    first, out, second = (tmp_path / name for name in ("first", "out", "second"))
    assert hermesflow(arguments(published_parts(tmp_path / "parts"), first)) == 0
    assert hermesflow(["export", str(first), "--to", str(out), "--format", file_format]) == 0
    assert hermesflow(arguments(Published(out, out / "magvitv2", out / "phi"), second)) == 0
    for file in ("model.safetensors", "vq/model.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes()
    assert same(load_file(first / "model.safetensors"), MODEL.network.state_dict())
    for file in ("config.json", "tokenizer.json", "vq/config.json"):
        assert (first / file).read_text() == (second / file).read_text()
    assert all((second / name).is_file() for name in family("showo").files)


def test_exports_are_what_the_published_code_loads(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "artifact/model")  # a checkpoint of the store has it there
    command = ["export", str(tmp_path / "artifact"), "--format", "bin"]
    assert hermesflow([*command, "--to", str(tmp_path / "out")]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    # Names that begin with "_" are no arguments of the published classes.
    public = {name: value for name, value in config.items() if not name.startswith("_")}
    assert public == {name: v for name, v in SHOW_O.items() if not name.startswith("_")} | {
        "llm_model_path": "phi",
        "num_new_special_tokens": 10,
        "load_from_showo": True,
    }
    tensors = torch.load(tmp_path / "out/pytorch_model.bin", weights_only=True)
    assert same(tensors, MODEL.network.state_dict())
    vq = torch.load(tmp_path / "out/magvitv2/pytorch_model.bin", weights_only=True)
    assert same(vq, MODEL.vq.state_dict())
    assert {"quantize.embedding", "quantize.power_vals"} <= vq.keys()
    phi = json.loads((tmp_path / "out/phi/config.json").read_text())
    assert phi["qk_layernorm"] is True
    config = AutoConfig.from_pretrained(tmp_path / "out/phi", local_files_only=True)
    assert (config.model_type, config.hidden_act, config.hidden_size) == ("phi", "gelu_new", 64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out/phi", local_files_only=True)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(200, 210))


def test_exports_in_another_dtype(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["export", str(tmp_path / "model"), "--to", str(out)]
    assert hermesflow([*command, "--dtype", "bfloat16"]) == 0
    tensors = load_file(out / "pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("--to", "here"), "--to here exists already; remove it"),
        (("--show-o", "no/where"), "--show-o = 'no/where' is no folder"),
        (("--vq", "a/file"), "--vq = 'a/file' is no folder"),
        (("--resolution", "100"), "resolution = 100 is no multiple of 16"),
    ],
)
def test_a_failed_import_says_why_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: tuple[str, str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    save_tensors({}, tmp_path / "a/file")
    before = arguments(published_parts(tmp_path / "parts"), tmp_path / "model")
    files = sorted(tmp_path.rglob("*"))
    assert hermesflow([*before, *change]) == 2
    assert expected in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == files


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(model: ShowoModel, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ShowoModel, "save_pretrained", full)
    command = arguments(published_parts(tmp_path / "parts"), tmp_path / "to/model")
    assert hermesflow(command) == 2
    assert "disk full while writing" in capsys.readouterr().err
    assert not list((tmp_path / "to").iterdir())


def test_the_projector_of_clip_features_is_kept_and_not_trained(tmp_path: Path) -> None:
    network = Showo(replace(MODEL.config, w_clip_vit=True)).eval()
    loaded = load_published(published_parts(tmp_path, "shards.bin", network)).network
    assert same(loaded.state_dict(), network.state_dict())
    assert not any(p.requires_grad for p in loaded.mm_projector.parameters())


# Memory

MEASURE = """
import sys, threading, time
from pathlib import Path
import torch
from models.families.showo.model import load_network
from models.families.showo.config import ShowoConfig
from models.weights import Weights

def kilobytes(*names):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return sum(int(lines[name].split()[0]) for name in names)

folder, dtype = Path(sys.argv[1]), sys.argv[2]
peak, done = 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, kilobytes("RssAnon", "RssShmem"))
        time.sleep(0.001)
before = kilobytes("RssAnon", "RssShmem")
watcher = threading.Thread(target=watch)
watcher.start()
config = ShowoConfig.from_json(folder / "config.json")
network = load_network(config, Weights(folder), torch.device("cpu"), dtype)
done.set()
watcher.join()
held = sum(p.numel() * p.element_size() for p in network.parameters())
print((peak - before) * 1024 / held)
"""


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["model.safetensors", "shards.bin"])
def test_loading_takes_the_memory_of_the_weights(tmp_path: Path, layout: str) -> None:
    """A map of the file is left out: its pages are the system's cache and can be dropped."""
    config = replace(MODEL.config, hidden_size=1024, intermediate_size=4096, num_hidden_layers=12)
    with without_values():
        shapes = {name: value.shape for name, value in Showo(config).state_dict().items()}
    config.to_json(tmp_path / "config.json")
    tensors = {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    save_weights(tensors, tmp_path, layout)
    measured = run_python("-c", MEASURE, tmp_path, "bfloat16")
    assert 0.9 < float(measured.stdout) < 1.15
