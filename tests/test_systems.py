"""Systems that are no checkpoints of ours: from elsewhere, on servers, of other libraries."""

import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import benchmark_files as made
import numpy as np
import pytest
import torch
from PIL import Image
from stage_inputs import QUICK

from core.errors import UserError
from data.results import read_result
from evals.benchmarks.shapes_geneval import ShapesGenEval
from evals.benchmarks.shapes_pope import NUM_SCENES, held_out_records
from evals.checkpoints import open_checkpoint
from evals.systems.base import NoPicture, Picture, Prompt, Question
from evals.systems.catalog import parse_settings, server_endpoint
from evals.systems.pictures import PictureFolder
from evals.systems.server import ServerSystem
from tests.commands import benchmark
from tests.llm_server import MODEL, llm_server
from tests.tiny_systems import chameleon, stable_diffusion

LIMIT = 12
NUM = 4


@pytest.fixture(scope="module")
def truth() -> list[tuple[Prompt, Image.Image]]:
    """Prompts of the shapes world, each with the scene that it was made of."""
    records = held_out_records(NUM_SCENES, "test")
    items = ShapesGenEval("test").items()
    return [
        (Prompt(item.item_id, item.text), Image.fromarray(records[item.item_id].image()))
        for item in items
    ]


Truth = Sequence[tuple[Prompt, Image.Image]]


def run(to: Path, *given: str, name: str = "shapes-geneval") -> int:
    return benchmark([name, "--to", str(to), "--config", str(QUICK), *given])


def geneval_layout(folder: Path, truth: Truth) -> Path:
    """Folders in another order than the prompts, as of a shuffled file."""
    for number, (prompt, picture) in enumerate(reversed(truth)):
        samples = folder / f"{number:05d}/samples"
        samples.mkdir(parents=True)
        metadata = samples.parent / "metadata.jsonl"
        metadata.write_text(json.dumps({"prompt": prompt.text, "tag": "x"}), encoding="utf-8")
        for sample in range(NUM):
            picture.save(samples / f"{sample:04d}.png")
    return folder


def plain_layout(folder: Path, truth: Truth) -> Path:
    for number, (_, picture) in enumerate(truth):
        (folder / str(number)).mkdir(parents=True)
        for sample in range(NUM):
            picture.save(folder / str(number) / f"{sample}.png")
    return folder


def flat_layout(folder: Path, truth: Truth) -> Path:
    """Grids of two by two."""
    folder.mkdir()
    for prompt, picture in truth:
        row = np.concatenate([np.asarray(picture)] * 2, 1)
        Image.fromarray(np.concatenate([row] * 2, 0)).save(folder / f"{prompt.item_id}.png")
    return folder


@pytest.mark.parametrize("layout", [geneval_layout, plain_layout, flat_layout])
def test_true_pictures_are_right_in_every_layout(
    layout: object, truth: Truth, tmp_path: Path
) -> None:
    folder = layout(tmp_path / "drawn", truth)  # type: ignore[operator]
    assert run(tmp_path / "out", "--pictures", str(folder), "--limit", str(LIMIT)) == 0
    found = made.figures(tmp_path / "out")
    assert found["all", "overall"] == found["all", "right"] == 1
    assert len(made.items(tmp_path / "out")) == LIMIT * NUM
    assert read_result(tmp_path / "out").lost == 0


def test_missing_and_damaged_pictures_are_named_counted_and_in_no_figure(
    truth: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompt without a folder, one without samples, a lost sample, a damaged one, a wrong one."""
    some = [*truth][:6]
    folder = plain_layout(tmp_path / "drawn", some)
    shutil.rmtree(folder / "0")
    for file in (folder / "1").iterdir():
        file.unlink()
    (folder / "2/3.png").unlink()
    (folder / "3/2.png").write_bytes(b"no picture")
    Image.new("RGB", some[0][1].size, "black").save(folder / "4/0.png")
    (folder / "999").mkdir()
    assert run(tmp_path / "out", "--pictures", str(folder)) == 0
    rows = made.items(tmp_path / "out")
    by_id = {(row["item_id"], row["sample"]): row for row in rows}
    lost = [row for row in rows if row["status"] == "not drawn"]
    assert len(rows) == NUM_SCENES * NUM
    assert len(lost) == (NUM_SCENES - 4) * NUM + 2
    assert by_id[some[0][0].item_id, 0]["reply"].endswith("has no picture of it")
    assert by_id[some[2][0].item_id, 3]["status"] == "not drawn"
    assert by_id[some[3][0].item_id, 2]["reply"].startswith("2.png: ")
    assert by_id[some[3][0].item_id, 3]["status"] == "answered"
    found = made.figures(tmp_path / "out")
    assert found["all", "right"] == pytest.approx(13 / 14)
    assert found["all", "items/not drawn"] == len(lost)
    shown = capsys.readouterr().err
    assert "such as '999'" in shown
    assert f"{len(lost)} of {len(rows)} items: not drawn (not scored)" in shown


def test_pictures_of_no_prompt_are_refused(
    truth: Truth, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.picture(tmp_path / "a/other.png")
    assert run(tmp_path / "out", "--pictures", str(tmp_path / "a")) == 2
    assert "has pictures of none of the 240 prompts" in capsys.readouterr().err
    assert run(tmp_path / "out", "--pictures", str(tmp_path / "none")) == 2
    assert "there is no such folder" in capsys.readouterr().err
    made.picture(tmp_path / "a/0/0.png")
    with pytest.raises(UserError, match="holds both pictures"):
        PictureFolder(tmp_path / "a", [prompt for prompt, _ in truth])


def test_a_file_from_prompts_to_pictures_and_single_pictures_are_read(
    truth: Truth, tmp_path: Path
) -> None:
    prompts = [prompt for prompt, _ in truth[:3]]
    truth[1][1].save(tmp_path / "one.png")
    listed = {prompts[1].text: "one.png", prompts[2].text: "lost.png", "another": "one.png"}
    (tmp_path / "paths.json").write_text(json.dumps(listed), encoding="utf-8")
    drawn = PictureFolder(tmp_path / "paths.json", prompts).draw(prompts, 1)
    assert [type(one) for (one,) in drawn] == [NoPicture, Picture, NoPicture]
    (tmp_path / "flat").mkdir()
    truth[0][1].save(tmp_path / f"flat/{prompts[0].item_id}.png")
    ((one,), (none,)) = PictureFolder(tmp_path / "flat", prompts).draw(prompts[:2], 1)
    assert isinstance(one, Picture)
    assert isinstance(none, NoPicture)
    assert np.array_equal(np.asarray(one.image), np.asarray(truth[0][1]))


def test_a_grid_is_read_row_by_row_and_an_odd_one_is_none(tmp_path: Path) -> None:
    prompts = [Prompt("a", "a"), Prompt("b", "b")]
    tile = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, 2)
    Image.fromarray(tile).save(tmp_path / "a.png")
    Image.fromarray(tile[:3]).save(tmp_path / "b.png")
    grid, odd = PictureFolder(tmp_path, prompts).draw(prompts, 4)
    first = [np.asarray(one.image)[0, 0, 0] for one in grid if isinstance(one, Picture)]
    assert first == [0, 2, 8, 10]
    assert odd == [NoPicture("b.png is 4 x 3, no grid of two by two")] * 4


def test_samples_of_lmms_eval_are_the_same_as_plain_replies(tmp_path: Path) -> None:
    data = made.pope(tmp_path)
    splits = ("random", "popular", "adversarial")
    plain = {f"{split}/{n}": ("no", "Yes")[n % 2] for split in splits for n in (1, 2, 3)}
    expected = made.scored("pope", data, plain, tmp_path / "plain")
    logged = [
        {"doc_id": number, "doc": {"category": split, "question_id": n}}
        | {"filtered_resps": [plain[f"{split}/{n}"]], "resps": [[plain[f"{split}/{n}"]]]}
        for number, (split, n) in enumerate((s, n) for s in splits for n in (1, 2, 3))
    ]
    file = made.json_lines(tmp_path / "samples_pope.jsonl", logged)
    assert made.run("pope", tmp_path / "o", "--data", str(data), "--answers", str(file)) == 0
    assert made.figures(tmp_path / "o") == expected
    assert expected["all", "items/no answer"] == 3


def test_samples_of_mme_are_told_apart_by_their_question(tmp_path: Path) -> None:
    data = made.mme(tmp_path / "mme")
    doc = {"category": "OCR", "question_id": "OCR/a.png"}
    asked = ("Is there one? Please answer yes or no.", "Two? Please answer yes or no.")
    logged = [
        {"doc": doc | {"question": text}, "filtered_resps": [reply]}
        for text, reply in zip(asked, ("yes", "yes"), strict=True)
    ]
    file = made.json_lines(tmp_path / "samples_mme.jsonl", logged)
    assert made.run("mme", tmp_path / "o", "--data", str(data), "--answers", str(file)) == 0
    found = made.figures(tmp_path / "o")
    assert found["OCR", "accuracy"] == 50
    assert found["all", "items/no answer"] == 38


def test_a_sample_with_several_replies_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"doc": {"category": "random", "question_id": 1}, "filtered_resps": ["yes", "no"]}
    file = made.json_lines(tmp_path / "s.jsonl", [row])
    data = ("--data", str(made.pope(tmp_path)))
    assert made.run("pope", tmp_path / "o", *data, "--answers", str(file)) == 2
    assert "object 1 has 2 replies in place of one" in capsys.readouterr().err


def test_a_server_reads_pictures(tmp_path: Path) -> None:
    """It knows the scenes, so all of its replies are right; one that is missing is in no figure."""
    with llm_server() as server:
        server.faults.append("no_choices")
        given = ("--server", f"{MODEL}@{server.url}", "--limit", "12")
        assert run(tmp_path / "out", *given, name="shapes-pope") == 0
    found = made.figures(tmp_path / "out")
    assert found["all", "accuracy"] == 1
    assert found["all", "items/no answer"] == 1
    result = read_result(tmp_path / "out")
    assert result.system == MODEL
    assert result.recipe["system"]["sampling"]["temperature"] == 0


def test_a_server_draws_and_a_refused_prompt_is_not_drawn(truth: Truth, tmp_path: Path) -> None:
    with llm_server() as server:
        server.pictures = {prompt.text: picture for prompt, picture in truth}
        server.lacks = {"seed"}
        server.pictures[truth[0][0].text] = None
        given = ("--server", f"{MODEL}@{server.url}", "--set", "size=64x64")
        assert run(tmp_path / "out", *given, "--name", "tiny") == 0
        drawn = [body for body in server.bodies if "prompt" in body]
    assert all(body["size"] == "64x64" for body in drawn)
    assert not any("seed" in body for body in drawn[20:])
    found = made.figures(tmp_path / "out")
    assert found["all", "right"] == 1
    same = sum(prompt.text == truth[0][0].text for prompt, _ in truth)
    assert found["all", "items/not drawn"] == NUM * same
    assert read_result(tmp_path / "out").system == "tiny"


@pytest.fixture(scope="module")
def tiny_chameleon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chameleon(tmp_path_factory.mktemp("chameleon"))


def test_a_chameleon_answers_every_item_whatever_its_batch(
    tiny_chameleon: Path, tmp_path: Path
) -> None:
    given = ("--transformers", str(tiny_chameleon), "--set", "max_new_tokens=4", "--limit", "12")
    assert run(tmp_path / "a", *given, name="shapes-pope") == 0
    rows = made.items(tmp_path / "a")
    assert not any(row["status"] == "no answer" for row in rows)
    recipe = read_result(tmp_path / "a").recipe["system"]
    assert recipe["sampling"] == {"max_new_tokens": 4, "do_sample": False}
    assert recipe["checkpoint"] == open_checkpoint(tiny_chameleon).digest


def test_choices_of_a_chameleon_are_weighed_by_its_first_token(tiny_chameleon: Path) -> None:
    """The same as a plain forward pass of transformers, and each picture by itself."""
    from transformers import ChameleonForConditionalGeneration, ChameleonProcessor

    from evals.systems.vlm import ImageTextSystem

    system = ImageTextSystem(open_checkpoint(tiny_chameleon), "cpu", "float32", {})
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(2)]
    row = {"type": "x", "question": "is there a circle ?", "choices": ["yes", "no"]}
    asked = [[{**row, "answer": answer}] for answer in ("yes", "no")]
    got = [one.probability for (one,) in system.choose(pictures, asked)]  # type: ignore[arg-type]
    model = ChameleonForConditionalGeneration.from_pretrained(tiny_chameleon).eval()
    processor = ChameleonProcessor.from_pretrained(tiny_chameleon)
    text = (
        "<image>is there a circle ?\nA) yes\nB) no\n"
        "Answer with the letter of the right choice and nothing else."
    )
    for picture, letter, found in zip(pictures, "AB", got, strict=True):
        inputs = processor(text=text, images=[picture], return_tensors="pt")
        with torch.no_grad():
            probabilities_V = model(**inputs).logits[0, -1].softmax(-1)
        expected = float(probabilities_V[processor.tokenizer.convert_tokens_to_ids(letter)])
        assert found == pytest.approx(expected, rel=1e-5)
    asked_twice = [[Question("is there a circle ?")]] * 2
    both = system.reply(pictures, asked_twice)
    assert both == [system.reply([one], asked_twice[:1])[0] for one in pictures]


@pytest.fixture(scope="module")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    pytest.importorskip("diffusers", reason="needs the extra `diffusers`")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of diffusers about themselves
        side = held_out_records(NUM_SCENES, "test")
        pixels = next(iter(side.values())).image().shape[0]
        yield stable_diffusion(tmp_path_factory.mktemp("pipeline"), pixels)


@pytest.mark.filterwarnings("ignore")
def test_a_pipeline_of_diffusers_draws_every_prompt_from_its_own_noise(
    tiny_pipeline: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    from core.runtime import derive_seed
    from evals.systems.diffusion import DiffusionSystem

    given = ("--diffusers", str(tiny_pipeline), "--set", "num_inference_steps=2", "--limit", "6")
    assert run(tmp_path / "out", *given) == 0
    assert len(made.items(tmp_path / "out")) == 6 * NUM
    sampling = read_result(tmp_path / "out").recipe["system"]["sampling"]
    assert sampling["num_inference_steps"] == 2
    assert sampling["guidance_scale"] == 7.5  # the pipeline's own default
    system = DiffusionSystem(tiny_pipeline, "cpu", "float32", {"num_inference_steps": 2})
    prompts = [Prompt("a", "a red circle", 5), Prompt("b", "a cat", 6)]
    together = system.draw(prompts, 2)
    alone = [system.draw([prompt], 2)[0] for prompt in prompts]
    plain = StableDiffusionPipeline.from_pretrained(tiny_pipeline)
    plain.set_progress_bar_config(disable=True)
    for prompt, some, same in zip(prompts, together, alone, strict=True):
        for sample, (one, other) in enumerate(zip(some, same, strict=True)):
            assert isinstance(one, Picture)
            assert isinstance(other, Picture)
            noise = torch.Generator().manual_seed(derive_seed(prompt.seed, sample))
            expected = plain(prompt.text, generator=noise, num_inference_steps=2).images[0]
            for picture in (one.image, other.image):
                assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert system.cut(["a red circle", "a red circle " * 20]) == [False, True]


@pytest.mark.filterwarnings("ignore")
def test_arguments_and_folders_that_are_none_of_a_pipeline_are_refused(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--diffusers", str(tiny_pipeline), "--set", "steps=2")
    assert run(tmp_path / "out", *given) == 2
    assert "--set steps: StableDiffusionPipeline takes" in capsys.readouterr().err
    assert run(tmp_path / "out", "--diffusers", str(tmp_path)) == 2
    assert "is no pipeline: it has no model_index.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("shapes-pope", ("--pictures", "x"), "shapes-pope takes no --pictures"),
        ("shapes-geneval", ("--transformers", "x"), "shapes-geneval takes no --transformers"),
        ("shapes-pope", (), "give one of --checkpoint, --server, --transformers, --answers"),
        ("shapes-pope", ("--server", "x", "--checkpoint", "y"), "scores one system"),
        ("shapes-pope", ("--server", "x"), "give MODEL@URL"),
        ("shapes-pope", ("--checkpoint", "x", "--set", "a=1"), "a checkpoint is sampled as"),
        ("shapes-pope", ("--server", "x", "--set", "a"), "give NAME=VALUE"),
    ],
)
def test_systems_that_cannot_be_measured_are_refused_before_any_work(
    name: str, given: Sequence[str], message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert run(tmp_path / "out", *given, name=name) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_settings_are_json_or_text() -> None:
    given = ["a=1", "b=7.5", "size=512x512", "c=null", "d=a=b"]
    assert parse_settings(given) == {"a": 1, "b": 7.5, "size": "512x512", "c": None, "d": "a=b"}
    endpoint = server_endpoint("facebook/chameleon-7b@http://localhost:8000/v1")
    assert (endpoint.model, endpoint.url) == ("facebook/chameleon-7b", "http://localhost:8000/v1")


def test_two_files_of_one_prompt_are_refused(truth: Truth, tmp_path: Path) -> None:
    """One of them would be left out, and nobody would know which was scored."""
    prompts = [prompt for prompt, _ in truth]
    for suffix in ("png", "jpg"):
        made.picture(tmp_path / f"{prompts[0].item_id}.{suffix}")
    with pytest.raises(UserError, match=r"are of the same prompt; leave one"):
        PictureFolder(tmp_path, prompts)


@pytest.mark.parametrize("given", ["many", 0, 1.5, True, None])
def test_a_limit_of_replies_that_is_no_number_is_refused(given: object) -> None:
    with pytest.raises(UserError, match="--set max_tokens"):
        ServerSystem(None, "a-model", {"max_tokens": given})  # type: ignore[arg-type]
