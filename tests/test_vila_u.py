"""VILA-U: the published layout in and out, what is refused, what is drawn, and training."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from core.errors import UserError
from evals.evaluation import token_diversity
from models import registry
from models.families.vila_u.config import OWN, VilaUConfig
from models.families.vila_u.convert import (
    FOLDERS,
    NOT_READ,
    SECOND_NAMES,
    load_checkpoint,
    published_config,
    siglip_sizes,
    split,
)
from models.families.vila_u.likelihood import drawn_picture
from models.families.vila_u.model import KEPT, PUBLISHED, TOWER, VilaUModel
from models.families.vila_u.network import VilaU
from models.families.vila_u.prompts import VilaUTokenizer
from models.families.vila_u.sampler import Rows
from models.families.vila_u.sentencepiece import read_pieces, read_tokenizer
from models.families.vila_u.tower import Tower
from models.memory import Sizes
from models.nn.packing import Segment, pack
from models.protocol import Autoregressive, MaskPredict, TextSampling
from models.samplers import prefixes
from models.samplers.autoregressive import guided
from models.weights import without_values
from tests.commands import hermesflow
from tests.hub import COMMIT, ID, hub_of
from tests.janus_tiny import published_folder as published_janus
from tests.janus_tiny import tiny_janus
from tests.limits import run_python
from tests.showo_tiny import tiny_model
from tests.stage_inputs import make_config
from tests.test_train import Loop, metrics
from tests.vila_u_tiny import KEYS, TINY, fixture, published_folder, random_vila_u, tiny_vila_u

MODEL = tiny_vila_u()
PICTURES = [
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 29, 3), dtype=np.uint8))
    for i in range(3)
]
HOW = Autoregressive(guidance=2.0, temperature=0.9, top_k=300, top_p=0.96)


def same(one: VilaUModel, other: VilaUModel) -> bool:
    """All weights bit by bit, and what is drawn and said."""
    mine, theirs = one.state_dict(), other.state_dict()
    return (
        mine.keys() == theirs.keys()
        and all(torch.equal(mine[name].float(), theirs[name].float()) for name in mine)
        and np.array_equal(*(m.generate(["a cat"], 2, HOW, [3]) for m in (one, other)))
        and one.caption(one.see(PICTURES), [TextSampling(1.0, 1, 5)], [0] * 3)
        == other.caption(other.see(PICTURES), [TextSampling(1.0, 1, 5)], [0] * 3)
    )


# The published layout


@pytest.mark.parametrize(
    "layout", ["model.safetensors", "pytorch_model.bin", "shards.safetensors", "shards.bin"]
)
def test_the_published_layout_comes_in_and_goes_out_bit_by_bit(tmp_path: Path, layout: str) -> None:
    """With what nothing here reads: SigLIP's text model and last layer, averages of codebooks."""
    folder = published_folder(tmp_path / "published", layout)
    arguments = ["import", "vila_u", "--vila-u", str(folder), "--to"]
    assert hermesflow([*arguments, str(tmp_path / "ours")]) == 0
    model = VilaUModel.from_pretrained(tmp_path / "ours", dtype=None)
    assert same(VilaUModel.from_pretrained(tmp_path / "ours"), MODEL)
    assert next(model.network.parameters()).dtype == torch.float16
    kind = "bin" if layout.endswith("bin") else "safetensors"
    out = tmp_path / "out"
    assert hermesflow(["export", str(tmp_path / "ours"), "--to", str(out), "--format", kind]) == 0
    for part in FOLDERS:
        wanted = load_file(TINY / part / "model.safetensors")
        if kind == "bin":
            written = torch.load(out / part / "pytorch_model.bin", weights_only=True)
        else:
            written = load_file(out / part / "model.safetensors")
        assert written.keys() == wanted.keys()
        assert all(torch.equal(written[name], wanted[name]) for name in wanted)
    small = {name for name in KEPT if (folder / name).is_file()}
    assert {"llm/tokenizer.model", "llm/added_tokens.json", "vision_tower/config.json"} < small
    assert all((out / name).read_bytes() == (folder / name).read_bytes() for name in small)
    assert not (out / PUBLISHED).exists()
    assert same(load_checkpoint(out, dtype="float32"), MODEL)


def test_a_model_that_came_from_no_published_folder_is_exported_too(tmp_path: Path) -> None:
    """With a codebook for each depth and config files of our own."""
    model = random_vila_u()
    model.save_pretrained(tmp_path / "ours")
    to = ["--to", str(tmp_path / "out")]
    assert hermesflow(["export", str(tmp_path / "ours"), *to]) == 0
    assert same(load_checkpoint(tmp_path / "out"), model)


@pytest.mark.parametrize("layout", ["shards.safetensors", "pytorch_model.bin"])
def test_of_a_repository_of_the_hub_the_needed_files_are_fetched(
    tmp_path: Path, layout: str
) -> None:
    folder = published_folder(tmp_path / "hub", layout)
    needed = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    others = ["README.md", "llm/optimizer.pt", "trainer_state.json", "model.safetensors"]
    for name in others + (["llm/pytorch_model.bin"] if "safetensors" in layout else []):
        (folder / name).write_text("not needed")
    to = tmp_path / "ours"
    with hub_of(folder, "models") as (address, sent):
        where = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        given = ["import", "vila_u", "--vila-u", f"{ID}@main", "--to", to]
        done = run_python("-m", "flows.cli", *given, **where)
    assert done.returncode == 0, done.stderr
    assert sent == needed
    assert same(VilaUModel.from_pretrained(to), MODEL)
    origin = json.loads((to / "origin.json").read_text())["vila_u"]
    assert (origin["given"], origin["commit"]) == (f"{ID}@main", COMMIT)
    weights = {name for name in needed if name.endswith((".safetensors", ".bin"))}
    assert set(origin["sha256"]) == {"llm/tokenizer.model", *weights}


@pytest.mark.parametrize(
    ("name", "image_size", "shape"),
    [("vila-u-7b-256", 256, (256, 4)), ("vila-u-7b-384", 384, (729, 16))],
)
def test_full_size_networks_have_exactly_the_published_tensors(
    tmp_path: Path, name: str, image_size: int, shape: tuple[int, int]
) -> None:
    published = json.loads(KEYS.read_text())[name]
    with torch.device("meta"):
        tensors = {
            key.replace("/", ".", 1): torch.empty(size)
            for key, size in published["tensors"].items()
        }
    sizes = dict(published["config"])
    files = {"llm": sizes.pop("llm"), "mm_projector": {}, "vision_tower": sizes}
    for part, content in files.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text("{}")
    config = published_config(tmp_path, {n: t.shape for n, t in tensors.items()}, {})
    of_network, of_tower, unused = split(tensors, config)
    with without_values():
        network, tower = VilaU(config), Tower(config)
    for module, found in ((network, of_network), (tower, of_tower)):
        assert {n: t.shape for n, t in module.state_dict().items()} == {
            n: t.shape for n, t in found.items()
        }
    layer = re.compile(rf".*vision_model\.encoder\.layers\.{config.siglip.num_hidden_layers}\..*")
    kinds = (NOT_READ, SECOND_NAMES, layer)
    assert all(sum(bool(kind.fullmatch(name)) for kind in kinds) == 1 for name in unused)
    assert sum(bool(layer.fullmatch(name)) for name in unused) == 16
    assert config.image_size == config.drawn_size == image_size
    assert (config.num_places, config.depth) == shape
    assert config.siglip.num_attention_heads == 16


def test_sizes_of_an_unknown_tower_are_asked_for() -> None:
    shapes = {name: tensor.shape for name, tensor in fixture().weights.items()}
    with pytest.raises(UserError, match=r"32 wide is not known .* image_size and num_attention"):
        siglip_sizes(shapes, {}, Path("config.json"))


# The tokenizer


def test_a_sentencepiece_model_becomes_the_tokenizer_that_transformers_makes_of_it() -> None:
    made = read_tokenizer(TINY / "llm", MODEL.config.text.vocab_size)
    wanted = MODEL.tokenizer.tokenizer
    texts = ["a red cat", "  two  blanks\n\nand lines ", "ünknown 漢字 4.5", "", "x<im_start>y</s>"]
    for text in texts:
        ids = made(text, add_special_tokens=False)["input_ids"]
        assert ids == wanted(text, add_special_tokens=False)["input_ids"]
        assert made.decode(ids) == wanted.decode(ids)
    assert made.get_vocab() == wanted.get_vocab()


def test_the_ids_of_added_tokens_may_stand_in_tokenizer_config_alone(tmp_path: Path) -> None:
    folder = shutil.copytree(TINY / "llm", tmp_path / "llm")
    (folder / "added_tokens.json").unlink()
    made = read_tokenizer(folder, MODEL.config.text.vocab_size)
    assert made.get_vocab() == MODEL.tokenizer.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("tokenizer.model", b"\x0a\xff\xff", "tokenizer.model cannot be read as a sentencepiece"),
        ("tokenizer.model", b"", "its first pieces are []"),
        ("tokenizer.model", None, "has neither tokenizer.model nor tokenizer.json"),
        ("added_tokens.json", b"{}", "180 pieces and added_tokens.json makes them 180, but vocab"),
        ("added_tokens.json", b'{"<im_start>": 182}', "<im_start> has id 182, but 180 is the next"),
        ("added_tokens.json", b'{"<im_start>": "x"}', "must hold ids by names"),
        ("tokenizer.json", b"{", "tokenizer.json cannot be read"),
    ],
)
def test_damaged_tokenizers_are_named(
    tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    folder = shutil.copytree(TINY / "llm", tmp_path / "llm")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(expected)):
        read_tokenizer(folder, MODEL.config.text.vocab_size)


def test_a_tokenizer_of_another_family_is_named() -> None:
    folder = TINY.parent / "janus_tiny/tokenizer"
    with pytest.raises(UserError, match=r"tokenizer.json lacks <unk>, <s>, </s>; give"):
        VilaUTokenizer.from_folder(folder, MODEL.config.settings)


def test_of_a_sentencepiece_model_that_is_cut_anywhere_nothing_is_read_wrongly(
    tmp_path: Path,
) -> None:
    content = (TINY / "llm/tokenizer.model").read_bytes()
    whole, path = read_pieces(TINY / "llm/tokenizer.model"), tmp_path / "tokenizer.model"
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        try:
            pieces = read_pieces(path)
        except UserError:
            continue
        assert pieces == whole[: len(pieces)]


def test_names_of_special_tokens_in_a_text_stay_text() -> None:
    special, tokenizer = MODEL.tokenizer.special, MODEL.tokenizer
    use = tokenizer.use("<im_start></s> " * 40 + "a red cat", "prompt")
    assert use.cut
    assert use.ids.count(special.im_start) == 1
    assert special.eos not in use.ids
    assert (use.ids[0], use.ids[-1]) == (special.bos, special.im_start)


def test_a_prompt_that_is_empty_is_the_row_of_guidance() -> None:
    assert np.array_equal(MODEL.tokenizer.prompt(" "), MODEL.tokenizer.unprompted())
    assert len(MODEL.tokenizer.prompt("a cat")) > len(MODEL.tokenizer.unprompted())


# What is refused


def test_folders_of_other_families_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = {"vila_u": MODEL, "janus": tiny_janus(), "showo": tiny_model()}
    titles = {"vila_u": "VILA-U", "janus": "Janus", "showo": "Show-o"}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    for mine in models:
        for other in models.keys() - {mine}:
            if "vila_u" not in (mine, other):
                continue
            expected = f"model of {titles[mine]}, but model.family = '{other}'; set it to {mine}"
            with pytest.raises(UserError, match=expected):
                registry.load_model(other, tmp_path / mine, "cpu")
            with pytest.raises(UserError, match=expected):
                registry.check_folder(other, tmp_path / mine)
    published = published_folder(tmp_path / "published", "shards.bin")
    with pytest.raises(UserError, match=r"published layout .* `hermesflow import vila_u`"):
        registry.check_folder("vila_u", published)
    to = ["--to", str(tmp_path / "x")]
    for folder in (tmp_path / "janus", published_janus(tmp_path / "pj", "shards.bin")):
        assert hermesflow(["import", "vila_u", *to, "--vila-u", str(folder)]) == 2
        assert "holds a model of Janus, but FAMILY = 'vila_u'" in capsys.readouterr().err
    for folder in (published, tmp_path / "vila_u"):
        assert hermesflow(["import", "janus", *to, "--janus", str(folder)]) == 2
        assert "a model of VILA-U, but FAMILY = 'janus'" in capsys.readouterr().err


@pytest.mark.parametrize("part", FOLDERS)
@pytest.mark.parametrize("what", ["folder", "config", "weights"])
def test_missing_parts_of_a_published_folder_are_named(
    tmp_path: Path, part: str, what: str
) -> None:
    folder = published_folder(tmp_path / "published", "model.safetensors")
    if what == "folder":
        shutil.rmtree(folder / part)
    else:
        (folder / part / {"config": "config.json", "weights": "model.safetensors"}[what]).unlink()
    with pytest.raises(UserError, match=str(folder / part)):
        load_checkpoint(folder)


def test_damaged_checkpoints_are_named_before_any_work(tmp_path: Path) -> None:
    def problem(folder: Path) -> str:
        with pytest.raises(UserError) as error:
            registry.check_folder("vila_u", folder)
        return str(error.value)

    MODEL.save_pretrained(tmp_path / "reads only")
    path = tmp_path / "reads only/model.safetensors"
    kept = {n: t for n, t in load_file(path).items() if "rqtransformer" not in n}
    save_file(kept, path, metadata={"format": "pt"})
    assert "the weights have no vision_tower.rqtransformer; give" in problem(path.parent)

    MODEL.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer/tokenizer.json"
    stored = json.loads(path.read_text(encoding="utf-8"))
    stored["added_tokens"] = [t for t in stored["added_tokens"] if t["id"] < 180]
    path.write_text(json.dumps(stored), encoding="utf-8")
    assert f"{path} lacks four added tokens at its end" in problem(path.parent)


@pytest.mark.parametrize(
    ("where", "value", "expected"),
    [
        (("llm", "num_hidden_layers"), 9, "54 missing: llm.model.layers.3."),
        (("llm", "num_hidden_layers"), 1, "18 unknown: llm.model.layers.1."),
        (("llm", "num_hidden_layers"), "many", "expected int, got str (value: 'many')"),
        (("llm", "vocab_size"), 999, "lm_head.weight is [184, 64] instead of [999, 64]"),
        (("llm", "hidden_size"), 32, "input_embed_dim_2 = 64, but llm.hidden_size = 32"),
        (("siglip", "image_size"), 32, "grid = (4, 4), but siglip's = (8, 8)"),
        (("siglip", "num_hidden_layers"), 0, "siglip.num_hidden_layers = 0 is out of range"),
        (("vision_tower", "rqvaesiglip", "n_embed"), 7, "vocab_size = 928, but"),
        (("vision_tower", "rqvaesiglip", "code_shape"), [4, 4], "rqvaesiglip.code_shape"),
        (("vision_tower", "rqvaesiglip", "shared_codebook"), False, "9 missing"),
        (("vision_tower", "rqvaesiglip", "ddconfig", "ch"), 64, "decoder.conv_in.bias is [64]"),
        (("vision_tower", "rqvaesiglip", "ddconfig", "ch"), 33, "no network can be made"),
        (("vision_tower", "rqvaesiglip", "ddconfig", "ch_mult"), [], "ch_mult = 0"),
        (("vision_tower", "rqvaesiglip", "decoder_latent_shape"), [0, 0], "(0, 0) is no grid"),
        (("vision_tower", "rqtransformer", "head", "block", "n_head"), 5, "multiple of its 5"),
        (("vision_tower", "rqtransformer", "block_size"), [4, 4, 3], "block_size = (4, 4, 3)"),
        (("image_aspect_ratio",), "anyres", "image_aspect_ratio = 'anyres' is not known here"),
        ((OWN,), 3, "config.json: hermesflow = 3 is no object"),
    ],
)
def test_wrong_sizes_are_named_before_any_work(
    tmp_path: Path, where: Sequence[str], value: object, expected: str
) -> None:
    MODEL.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    reduce(getitem, where[:-1], stored)[where[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(stored))
    if expected == "9 missing":  # tables of three more depths
        expected = "3 missing: quantizer.codebooks.1.weight"
    with pytest.raises(UserError, match=re.escape(expected)):
        registry.check_folder("vila_u", tmp_path)


def test_pictures_by_masks_are_refused() -> None:
    with pytest.raises(UserError, match=r"draws code by code; set sampling.images.sampler"):
        MODEL.generate(["a cat"], 1, MaskPredict(steps=2, guidance=0.0), [0])


# What is drawn and read


def test_a_model_in_half_precision_draws_reads_and_scores(tmp_path: Path) -> None:
    """With vectors of codes in float32 all the same."""
    MODEL.save_pretrained(tmp_path)
    half = VilaUModel.from_pretrained(tmp_path, dtype="bfloat16")
    assert {p.dtype for p in half.network.parameters()} == {torch.bfloat16}
    assert half.network.tables_KCZ.dtype == torch.float32
    assert half.generate(["a cat"], 2, HOW, [3]).shape == (1, 2, 16, 4)
    seen = half.see(PICTURES)
    assert np.array_equal(seen.rows, MODEL.see(PICTURES).rows)
    questions = [[("What is it?", ["a cat", "a red ball", "the mat"])]] * 3
    for found, wanted in zip(
        half.answer(seen, questions), MODEL.answer(seen, questions), strict=True
    ):
        np.testing.assert_allclose(found[0], wanted[0], atol=0.2)
    codes = fixture().inputs["dpo_codes"].astype(np.int64)
    pairs = _pairs(codes[:, 0], codes[:, 1])
    for modality in ("caption", "image"):
        found, wanted = (m.pair_logps(pairs, modality).chosen_logps_B for m in (half, MODEL))
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.5)


@pytest.mark.parametrize("make", [tiny_vila_u, random_vila_u])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_cached_steps_have_the_logits_of_whole_rows(make: object, guidance: float) -> None:
    """Over positions and depths, behind prompts of different lengths that samples share."""
    model: VilaUModel = make()  # type: ignore[operator]
    network, config, tokenizer = model.network, model.config, model.tokenizer
    prompts = [tokenizer.prompt(text) for text in ("a red cat", "two blue squares and a circle")]
    rng = np.random.default_rng(0)
    codes_RND = rng.integers(0, config.num_entries, (4, config.num_places, config.depth))
    rows, seen = Rows(network, prompts, 2, guidance > 0, tokenizer), []
    with torch.inference_mode():
        last = None
        for code_R in codes_RND.reshape(4, -1).T:
            seen.append(guided(rows.next_logits(last), guidance))
            last = torch.from_numpy(code_R.copy())
        found_RNDC = torch.stack(seen, dim=1).view(*codes_RND.shape, -1)
        for row, codes_ND in enumerate(codes_RND):
            whole = []
            for ids in (prompts[row // 2], tokenizer.unprompted()):
                tree = [Segment(ids), drawn_picture(codes_ND, tokenizer.special.pad)]
                batch = pack([tree], tokenizer.special.pad)
                hidden_1RW = network.transform(
                    network.embed(batch),
                    batch.attend_B1TT,
                    batch.position_ids_BT,
                    read_BR=batch.read_BR,
                )
                whole.append(network.code_logits(hidden_1RW[0], torch.from_numpy(codes_ND)))
            wanted = (1 + guidance) * whole[0] - guidance * whole[1]
            torch.testing.assert_close(found_RNDC[row], wanted, rtol=0, atol=1e-4)


def test_prompts_are_run_once_for_all_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the row without a prompt once for all prompts."""
    rows: list[int] = []
    before = prefixes.prefill

    def counting(network: object, trees: Sequence[object], *given: object) -> object:
        rows.append(len(trees))
        return before(network, trees, *given)  # type: ignore[arg-type]

    monkeypatch.setattr("models.families.vila_u.sampler.prefill", counting)
    drawn = MODEL.generate(["a cat", "a red ball", "a dog"], 4, HOW, [1, 2, 3])
    assert drawn.shape == (3, 4, 16, 4)
    assert rows == [4]


def test_what_was_drawn_is_read_as_it_is() -> None:
    drawn = MODEL.generate(["a cat"], 2, HOW, [5])[0]
    assert np.array_equal(MODEL.see_drawn(drawn).rows, drawn)
    codes = MODEL.see(PICTURES).rows
    assert codes.shape == (3, 16, 4)
    assert (codes != MODEL.encode(PICTURES)).any()  # squeezed to be read, cropped to be drawn


def test_every_code_of_a_picture_counts() -> None:
    """Diversity, and the tokens that normalise a likelihood."""
    codes_MND = np.zeros((2, 16, 4), dtype=np.int64)
    codes_MND[1, :, 3] = 1
    assert token_diversity(codes_MND) == pytest.approx(0.25)
    loop_pairs = fixture().inputs["dpo_codes"].astype(np.int64)
    logps = MODEL.pair_logps(_pairs(loop_pairs[:, 0], loop_pairs[:, 1]), "image")
    assert logps.chosen_tokens_B.tolist() == logps.rejected_tokens_B.tolist() == [64.0, 64.0]
    texts = MODEL.pair_logps(_pairs(loop_pairs[:, 0], loop_pairs[:, 1]), "caption")
    assert texts.chosen_tokens_B[0] == len(MODEL.tokenizer.answer("a red cat"))


def _pairs(win: np.ndarray, lose: np.ndarray) -> object:
    from models.protocol import PairBatch

    return PairBatch(
        MODEL.see(PICTURES[:2]), ["a red cat"] * 2, ["a dog"] * 2, ["a cat", "a ball"],
        win, lose, [0, 0], [False, True],
    )  # fmt: skip


# Training


def test_memory_counts_the_tower_as_not_trained(tmp_path: Path) -> None:
    """And what only the published code loads not at all."""
    published = published_folder(tmp_path / "theirs", "model.safetensors")
    folder = tmp_path / "ours"
    load_checkpoint(published).save_pretrained(folder)
    assert (folder / PUBLISHED / "model.safetensors").is_file()
    of = registry.family("vila_u")
    sizes = Sizes.from_folder(folder, of.frozen, of.vision)
    assert sizes.network == sum(p.numel() for p in MODEL.network.parameters())
    assert sizes.frozen == sum(t.numel() for t in MODEL.tower.state_dict().values())
    assert VilaUConfig.from_json(folder / "config.json").tower == MODEL.config.tower


@pytest.mark.parametrize(
    "changes",
    [
        {"training__lora": {"rank": 2, "alpha": 4}},
        {"model__precision": "bfloat16"},
        {"runtime__recompute": True, "training__objective__combine": "joint"},
    ],
)
def test_a_vila_u_is_trained_in_every_way(tmp_path: Path, changes: Mapping[str, object]) -> None:
    images = {"sampler": "autoregressive", "num_samples": 2, "guidance": 0.0, "temperature": 1.0}
    fixed = {"model__family": "vila_u", "sampling__images": images, "training__image_draws": 0}
    model = random_vila_u()
    trained = Loop(tmp_path, model).train(make_config(**fixed, **changes))
    first, *_, last = metrics(trained)
    for modality in ("caption", "image"):
        assert first[f"{modality}/rewards/margins"] == pytest.approx(0.0, abs=2e-2)
        assert last[f"{modality}/rewards/margins"] > 0.05
    before = model.state_dict()
    after = VilaUModel.from_pretrained(trained.path("model")).state_dict()
    assert after.keys() == before.keys()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert any(name.startswith("llm.model.layers") for name in moved)
    assert any("rqtransformer.head_transformer" in name for name in moved)
    assert not any(name.startswith(TOWER) for name in moved)
